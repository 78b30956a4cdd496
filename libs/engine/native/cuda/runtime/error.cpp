#include "cuda/runtime/error.h"

namespace engine::cuda {

void throw_cuda_error(cudaError_t status, const char* expression, const char* file, int line) {
  Code code = Code::internal;
  switch (status) {
    case cudaErrorMemoryAllocation: code = Code::oom; break;
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorDevicesUnavailable:
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorUnknown: code = Code::device_lost; break;
    default: break;
  }
  (void)cudaGetLastError();  // a failed allocation stays "the last error" until it is read; a lost device fails again by itself
  fail(code, "CUDA: ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ") from ", expression, " at ", file, ":", line);
}

}  // namespace engine::cuda
