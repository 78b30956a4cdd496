#include "formats/safetensors.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "core/json.h"
#include "core/staged_output.h"
#include "formats/safetensors_header.h"

namespace engine {
namespace {

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian and is used in place");

std::int64_t byte_count(Dtype dtype, std::span<const std::int64_t> shape) {
  std::int64_t bytes = 0;
  require(Code::corrupt, !__builtin_mul_overflow(element_count(shape), dtype_size(dtype), &bytes), "a tensor's byte count overflows");
  return bytes;
}

// The reference library's order of dtypes in a file: widest first, so that each tensor starts aligned.
int layout_rank(Dtype dtype) {
  constexpr std::array<Dtype, 15> kOrder = {Dtype::u64,  Dtype::i64, Dtype::f64, Dtype::f32, Dtype::u32,     Dtype::i32,     Dtype::bf16, Dtype::f16,
                                            Dtype::u16,  Dtype::i16, Dtype::f8_e4m3, Dtype::f8_e5m2, Dtype::i8, Dtype::u8, Dtype::boolean};
  return static_cast<int>(std::find(kOrder.begin(), kOrder.end(), dtype) - kOrder.begin());
}

}  // namespace

std::int64_t element_count(std::span<const std::int64_t> shape) {
  std::int64_t count = 1;
  for (const std::int64_t dimension : shape) {
    require(Code::corrupt, dimension >= 0, "a tensor has the negative dimension ", dimension);
    require(Code::corrupt, !__builtin_mul_overflow(count, dimension, &count), "a tensor's element count overflows");
  }
  return count;
}

SafetensorsContents parse_safetensors(std::span<const std::uint8_t> file, std::string_view what) {
  require(Code::corrupt, file.size() >= 8, what, " has ", file.size(), " bytes; a safetensors file has at least 8");
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), 8);
  require(Code::corrupt, header_bytes <= kMaxHeaderBytes, what, ": the header claims ", header_bytes, " bytes; the limit is ", kMaxHeaderBytes);
  require(Code::corrupt, header_bytes <= file.size() - 8, what, ": the header claims ", header_bytes, " bytes but only ", file.size() - 8,
          " follow; the file is truncated or not safetensors");
  SafetensorsHeader header = parse_safetensors_header({reinterpret_cast<const char*>(file.data()) + 8, header_bytes}, what);

  const auto data = file.subspan(8 + header_bytes);
  const auto data_bytes = static_cast<std::int64_t>(data.size());
  SafetensorsContents contents{.tensors = {}, .metadata = std::move(header.metadata)};
  contents.tensors.reserve(header.entries.size());
  std::int64_t expected = 0;
  for (HeaderEntry& entry : header.entries) {
    require(Code::corrupt, entry.begin <= entry.end, what, ": tensor \"", entry.name, "\" ends at ", entry.end, ", before it begins at ", entry.begin);
    require(Code::corrupt, entry.end <= data_bytes, what, ": tensor \"", entry.name, "\" ends at byte ", entry.end, " of ", data_bytes,
            "; the file is truncated");
    require(Code::corrupt, entry.begin == expected, what, ": tensor \"", entry.name, "\" begins at byte ", entry.begin, ", not at ", expected,
            ": the data has a gap or an overlap, or the header is not in the order of the data");
    std::int64_t bytes = 0;
    try {
      bytes = byte_count(entry.dtype, entry.shape);
    } catch (const Error& error) {
      fail(Code::corrupt, what, ": tensor \"", entry.name, "\": ", error.message());
    }
    require(Code::corrupt, entry.end - entry.begin == bytes, what, ": tensor \"", entry.name, "\" spans ", entry.end - entry.begin,
            " bytes, but its shape and dtype need ", bytes);
    expected = entry.end;
    contents.tensors.push_back({.name = std::move(entry.name),
                                .dtype = entry.dtype,
                                .shape = std::move(entry.shape),
                                .data = data.data() + entry.begin,
                                .bytes = bytes,
                                .offset = static_cast<std::int64_t>(8 + header_bytes) + entry.begin});
  }
  require(Code::corrupt, expected == data_bytes, what, ": ", data_bytes - expected, " bytes after the last tensor belong to none");
  return contents;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : file_(path), contents_(parse_safetensors(file_.bytes(), path.filename().string())) {
  by_name_.reserve(contents_.tensors.size());
  for (std::size_t i = 0; i < contents_.tensors.size(); ++i) by_name_.emplace(contents_.tensors[i].name, i);
}

const TensorView* SafetensorsFile::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &contents_.tensors[found->second];
}

const TensorView& SafetensorsFile::at(std::string_view name) const {
  const TensorView* tensor = find(name);
  require(Code::corrupt, tensor != nullptr, file_.path().filename().string(), " has no tensor \"", name, "\"");
  return *tensor;
}

void SafetensorsFile::release(const TensorView& tensor) const noexcept {
  file_.release(static_cast<std::size_t>(tensor.offset), static_cast<std::size_t>(tensor.bytes));
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorSpec> specs, const Metadata& metadata) : path_(path) {
  std::sort(specs.begin(), specs.end(), [](const TensorSpec& a, const TensorSpec& b) {
    const int rank_a = layout_rank(a.dtype), rank_b = layout_rank(b.dtype);
    return rank_a != rank_b ? rank_a < rank_b : a.name < b.name;
  });
  Json header = Json::object();
  if (!metadata.empty()) {
    Json& stored = header["__metadata__"] = Json::object();
    for (const auto& [key, value] : metadata) stored[key] = value;
  }
  for (const TensorSpec& spec : specs) {
    require(!spec.name.empty() && spec.name != "__metadata__", "\"", spec.name, "\" cannot name a tensor");
    require(!safetensors_name(spec.dtype).empty(), "tensor \"", spec.name, "\" has type ", dtype_name(spec.dtype), ", which safetensors cannot hold");
    const std::int64_t bytes = byte_count(spec.dtype, spec.shape);
    const std::int64_t begin = data_bytes_;
    require(!__builtin_add_overflow(begin, bytes, &data_bytes_), "the tensors are larger than a file can be");
    require(slots_.emplace(spec.name, Slot{begin, data_bytes_, 0}).second, "two tensors are named \"", spec.name, "\"");
    header[spec.name] = {{"dtype", safetensors_name(spec.dtype)}, {"shape", spec.shape}, {"data_offsets", {begin, data_bytes_}}};
  }
  std::string header_text;
  try {
    header_text = header.dump();
  } catch (const nlohmann::json::exception&) {
    fail(Code::invalid, "a tensor's name or metadata is not UTF-8");
  }
  header_text.append((8 - header_text.size() % 8) % 8, ' ');
  require(header_text.size() <= kMaxHeaderBytes, "the header would have ", header_text.size(), " bytes; the limit is ", kMaxHeaderBytes);
  parse_safetensors_header(header_text, path.filename().string());  // what we write, our reader accepts
  const auto data_start = static_cast<std::int64_t>(8 + header_text.size());
  for (auto& [name, slot] : slots_) slot.begin += data_start, slot.end += data_start;

  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd_ < 0) fail(Code::io, "cannot create ", path.string(), ": ", std::strerror(errno));
  std::string head(8, '\0');
  const std::uint64_t length = header_text.size();
  std::memcpy(head.data(), &length, 8);
  head += header_text;
  if (::pwrite(fd_, head.data(), head.size(), 0) != static_cast<ssize_t>(head.size()) || ::ftruncate(fd_, data_start + data_bytes_) != 0) {
    const int reason = errno;
    ::close(fd_);
    fd_ = -1;
    fail(Code::io, "cannot write ", path.string(), ": ", std::strerror(reason));
  }
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ >= 0) ::close(fd_);
}

void SafetensorsWriter::append(std::string_view name, std::span<const std::uint8_t> bytes) {
  const auto found = slots_.find(name);
  require(found != slots_.end(), "no tensor \"", name, "\" was announced for ", path_.filename().string());
  require(fd_ >= 0, path_.filename().string(), " is finished");
  Slot& slot = found->second;
  require(static_cast<std::int64_t>(bytes.size()) <= slot.end - slot.begin - slot.filled, "tensor \"", name, "\" receives more bytes than its shape holds");
  std::size_t done = 0;
  while (done < bytes.size()) {
    const auto written = ::pwrite(fd_, bytes.data() + done, bytes.size() - done, slot.begin + slot.filled);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(Code::io, "cannot write ", path_.string(), ": ", std::strerror(errno));
    done += static_cast<std::size_t>(written);
    slot.filled += written;
  }
}

void SafetensorsWriter::append(std::string_view name, const void* data, std::int64_t bytes) {
  append(name, {static_cast<const std::uint8_t*>(data), static_cast<std::size_t>(bytes)});
}

void SafetensorsWriter::finish() {
  for (const auto& [name, slot] : slots_)
    require(slot.filled == slot.end - slot.begin, "tensor \"", name, "\" received ", slot.filled, " of ", slot.end - slot.begin, " bytes");
  const bool synced = ::fsync(fd_) == 0;
  const int reason = errno;
  const bool closed = ::close(fd_) == 0;
  fd_ = -1;
  if (!synced || !closed) fail(Code::io, "cannot finish ", path_.string(), ": ", std::strerror(synced ? errno : reason));
}

void write_safetensors(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors, const Metadata& metadata) {
  StagedFile staged(path);
  std::vector<TensorSpec> specs;
  specs.reserve(tensors.size());
  for (const NamedTensor& tensor : tensors) specs.push_back(tensor.spec);
  SafetensorsWriter writer(staged.path(), std::move(specs), metadata);
  for (const NamedTensor& tensor : tensors) writer.append(tensor.spec.name, tensor.data, byte_count(tensor.spec.dtype, tensor.spec.shape));
  writer.finish();
  staged.commit();
}

}  // namespace engine
