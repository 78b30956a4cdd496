// libraries.h: NVIDIA's libraries, opened by name when they are first asked for, so that the back end builds with nvcc alone and loads anywhere.
//   Looked for in the folders of MEDMESH_CUDA_LIBRARY_PATH (colons between), then where the loader looks, then in /usr/local/cuda/lib64. The prototypes
//   are declared by hand, after the libraries' public headers; only functions whose interface has not changed since CUDA 12 are used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/runtime/handles.h"

namespace engine::cuda {

// ---- cuBLASLt (cublasLt.h)

using CublasLtHandle = struct CublasLtContext*;
using CublasLtOperation = struct CublasLtOperationOpaque*;
using CublasLtLayout = struct CublasLtLayoutOpaque*;
using CublasLtPreference = struct CublasLtPreferenceOpaque*;

struct CublasLtAlgorithm {
  std::uint64_t data[8];  // may be stored and used again by the same version on the same kind of device
};

struct CublasLtHeuristic {
  CublasLtAlgorithm algorithm;
  std::size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};

struct CublasLt {
  enum : int { kSuccess = 0 };
  enum Type : int { kF32 = 0, kBf16 = 14 };
  enum Compute : int { kCompute32F = 68 };
  enum OperationAttribute : int { kTransposeA = 3, kTransposeB = 4, kEpilogue = 7, kBiasPointer = 8, kBiasType = 26 };
  enum Transpose : std::int32_t { kPlain = 0, kTransposed = 1 };
  enum Epilogue : std::int32_t { kEpilogueDefault = 1, kEpilogueBias = 4 };
  enum PreferenceAttribute : int { kWorkspaceBytes = 1, kReductionSchemes = 3, kAlignmentA = 5, kAlignmentB = 6, kAlignmentC = 7, kAlignmentD = 8 };
  enum ReductionScheme : std::uint32_t { kReduceInComputeType = 2 };

  std::size_t (*version)();
  int (*create)(CublasLtHandle* handle);
  int (*destroy)(CublasLtHandle handle);
  int (*operation_create)(CublasLtOperation* operation, int compute, int scale_type);
  int (*operation_destroy)(CublasLtOperation operation);
  int (*operation_set)(CublasLtOperation operation, int attribute, const void* value, std::size_t bytes);
  int (*layout_create)(CublasLtLayout* layout, int type, std::uint64_t rows, std::uint64_t columns, std::int64_t stride);
  int (*layout_destroy)(CublasLtLayout layout);
  int (*preference_create)(CublasLtPreference* preference);
  int (*preference_destroy)(CublasLtPreference preference);
  int (*preference_set)(CublasLtPreference preference, int attribute, const void* value, std::size_t bytes);
  int (*heuristic)(CublasLtHandle handle, CublasLtOperation operation, CublasLtLayout a, CublasLtLayout b, CublasLtLayout c, CublasLtLayout d,
                   CublasLtPreference preference, int wanted, CublasLtHeuristic* results, int* found);
  int (*check)(CublasLtHandle handle, CublasLtOperation operation, CublasLtLayout a, CublasLtLayout b, CublasLtLayout c, CublasLtLayout d,
               const CublasLtAlgorithm* algorithm, CublasLtHeuristic* result);
  int (*multiply)(CublasLtHandle handle, CublasLtOperation operation, const void* alpha, const void* a, CublasLtLayout a_layout, const void* b,
                  CublasLtLayout b_layout, const void* beta, const void* c, CublasLtLayout c_layout, void* d, CublasLtLayout d_layout,
                  const CublasLtAlgorithm* algorithm, void* workspace, std::size_t workspace_bytes, cudaStream_t stream);
};

// Null when the library cannot be opened or lacks a function. The same answer for the whole process. Always null in the emulation.
const CublasLt* cublas_lt() noexcept;

// ---- NCCL (nccl.h)

using NcclComm = struct NcclCommOpaque*;

struct Nccl {
  enum : int { kSuccess = 0 };
  enum Type : int { kF32 = 7, kF64 = 8 };
  enum Reduction : int { kSum = 0 };

  int (*init_all)(NcclComm* communicators, int devices, const int* device_numbers);
  int (*destroy)(NcclComm communicator);
  int (*all_reduce)(const void* from, void* to, std::size_t count, int type, int reduction, NcclComm communicator, cudaStream_t stream);
  int (*broadcast)(const void* from, void* to, std::size_t count, int type, int root, NcclComm communicator, cudaStream_t stream);
  int (*group_start)();
  int (*group_end)();
  const char* (*error_string)(int status);
};

// Null when it cannot be opened. Turns NVLink multicast off (NCCL_NVLS_ENABLE=0) unless the environment decides.
const Nccl* nccl() noexcept;

// ---- NVML (nvml.h)

using NvmlDevice = struct NvmlDeviceOpaque*;

struct Nvml {
  enum : int { kSuccess = 0 };
  // `used` does not hold what the driver keeps for itself.
  struct Memory {
    unsigned version = static_cast<unsigned>(sizeof(Memory)) | 2u << 24;
    unsigned long long total = 0, reserved = 0, free = 0, used = 0;
  };

  int (*init)();
  int (*device_by_pci_bus)(const char* bus_id, NvmlDevice* device);
  int (*memory)(NvmlDevice device, Memory* memory);
};

// Null when it cannot be opened or does not start.
const Nvml* nvml() noexcept;

}  // namespace engine::cuda
