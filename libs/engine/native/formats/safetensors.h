// safetensors.h: reads and writes one safetensors file.
//   u64 little-endian header length | JSON header | data.    header: { name: {"dtype", "shape", "data_offsets": [begin, end)}, … }
//   The reader trusts nothing: it checks every bound before use and refuses with Code::corrupt and the reason: a header over 100 MB or past the
//   file's end, not a UTF-8 JSON object, a repeated or unknown key, a name with NUL, control characters or path separators, an unknown dtype, a
//   shape whose size overflows, offsets out of order, with gaps or overlaps, or that disagree with shape × dtype or with the file's end.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/dtype.h"
#include "core/mapped_file.h"

namespace engine {

// Element count of a shape; empty is a scalar (1). Throws corrupt when it overflows int64 or a dimension is negative.
std::int64_t element_count(std::span<const std::int64_t> shape);

struct TensorView {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<std::int64_t> shape;
  const std::uint8_t* data = nullptr;  // borrowed from the file; may be unaligned: read through to_f32 or memcpy unless is_aligned()
  std::int64_t bytes = 0;
  std::int64_t offset = 0;  // of `data` from the start of the file

  std::int64_t elements() const { return element_count(shape); }
  bool is_aligned() const noexcept { return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(dtype_size(dtype)) == 0; }
};

using Metadata = std::map<std::string, std::string>;

struct SafetensorsContents {
  std::vector<TensorView> tensors;  // in the order of their data
  Metadata metadata;
};

// Parses a whole file held in memory; the views borrow from `file`. `what` names it in messages.
SafetensorsContents parse_safetensors(std::span<const std::uint8_t> file, std::string_view what);

// A mapped file and its tensors.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);  // throws io, corrupt

  const std::vector<TensorView>& tensors() const noexcept { return contents_.tensors; }
  const Metadata& metadata() const noexcept { return contents_.metadata; }
  const TensorView* find(std::string_view name) const;   // nullptr when absent
  const TensorView& at(std::string_view name) const;     // throws corrupt when absent
  const MappedFile& file() const noexcept { return file_; }
  // Drops the pages of bytes [first, first + count) of the tensor from this process after a streaming pass.
  void release(const TensorView& tensor, std::int64_t first, std::int64_t count) const noexcept;

 private:
  MappedFile file_;
  SafetensorsContents contents_;
  std::unordered_map<std::string_view, std::size_t> by_name_;  // keys borrow from contents_
};

struct TensorSpec {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<std::int64_t> shape;
};

// A u8 tensor whose length is known only after others were computed (bitsandbytes' quant_state holds a printed float).
struct LateTensorSpec {
  std::string name;
  std::int64_t max_bytes = 0;
};

// Writes a file whose layout is fixed up front, so tensors may be produced in any order and in pieces. Data is laid out as the reference library
// does it (by dtype, then by name), which keeps every tensor aligned; late tensors follow. The header is written last, so an unfinished file is no
// safetensors file. Not atomic by itself: write inside a StagedDirectory or StagedFile.
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorSpec> specs, Metadata metadata,
                    const std::vector<LateTensorSpec>& late = {});  // throws invalid, io
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // Appends to the named tensor. Throws invalid for an unknown name or more bytes than its shape holds, io when the disk refuses.
  void append(std::string_view name, const void* data, std::int64_t bytes);
  // Writes the whole of a late tensor, once.
  void append_late(std::string_view name, std::string_view bytes);
  // Writes the header, syncs and closes. Throws invalid when a tensor is not complete.
  void finish();
  std::int64_t data_bytes() const noexcept { return data_bytes_; }

 private:
  struct Slot {
    std::int64_t begin = 0, end = 0, filled = 0;  // begin and end in the data section; bytes
  };
  std::string header_text() const;
  void write_at(std::int64_t offset, const void* data, std::int64_t bytes);

  std::filesystem::path path_;
  Metadata metadata_;
  std::vector<TensorSpec> specs_;  // in the order of their data; late ones are appended as they arrive
  std::map<std::string, Slot, std::less<>> slots_;
  std::map<std::string, std::int64_t, std::less<>> late_;  // announced and not yet written -> most bytes
  std::int64_t data_start_ = 0, data_bytes_ = 0;
  int fd_ = -1;
};

// Whole small files at once (adapters, optimizer state), atomically: the target is replaced only when complete.
struct NamedTensor {
  TensorSpec spec;
  const void* data = nullptr;  // borrowed; bytes follow from spec
};
void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors, const Metadata& metadata);

}  // namespace engine
