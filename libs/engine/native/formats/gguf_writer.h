// gguf_writer.h: writes one GGUF file whose layout is fixed up front, so a tensor's data may come in pieces and late numbers may enter the metadata.
//   The header follows the data: an unfinished file is no GGUF file. Not atomic by itself: write inside a StagedFile.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "formats/gguf.h"

namespace engine {

struct GgufTensorSpec {
  std::string name;
  GgmlType type = GgmlType::f32;
  std::vector<std::int64_t> shape;  // outermost first, as everywhere in this project; the file has them reversed

  std::int64_t values() const noexcept;
  std::int64_t bytes() const noexcept;
};

class GgufWriter {
 public:
  // Throws invalid for a repeated or over-long name, more than four dimensions, or rows that are no whole number of blocks; io.
  GgufWriter(const std::filesystem::path& path, GgufMetadata metadata, std::vector<GgufTensorSpec> tensors);
  ~GgufWriter();
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;

  // Appends bytes to the named tensor. Throws invalid for an unknown name or more bytes than it holds, io.
  void append(std::string_view name, const void* data, std::int64_t bytes);
  // Replaces a number announced in the constructor's metadata by another of the same type.
  void set(std::string_view key, GgufValue value);
  // Reads back what was appended. Throws io.
  void read(std::string_view name, std::int64_t offset, void* data, std::int64_t bytes) const;
  // Writes the header as it stands now: the file can be read. Throws invalid when a tensor is not complete.
  void write_header();
  // Writes the header again, syncs and closes.
  void finish();

  std::int64_t file_bytes() const noexcept { return data_start_ + data_bytes_; }

 private:
  struct Slot {
    std::int64_t begin = 0, bytes = 0, filled = 0;  // begin in the data section
  };
  std::string header() const;
  void write_at(std::int64_t offset, const void* data, std::int64_t bytes);
  const Slot& slot(std::string_view name) const;

  std::filesystem::path path_;
  GgufMetadata metadata_;
  std::vector<GgufTensorSpec> tensors_;
  std::map<std::string, Slot, std::less<>> slots_;
  std::int64_t data_start_ = 0, data_bytes_ = 0;
  int fd_ = -1;
};

}  // namespace engine
