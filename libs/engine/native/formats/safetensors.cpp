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

void SafetensorsFile::release(const TensorView& tensor, std::int64_t first, std::int64_t count) const noexcept {
  file_.release(static_cast<std::size_t>(tensor.offset + first), static_cast<std::size_t>(count));
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorSpec> specs, Metadata metadata,
                                     const std::vector<LateTensorSpec>& late)
    : path_(path), metadata_(std::move(metadata)), specs_(std::move(specs)) {
  std::sort(specs_.begin(), specs_.end(), [](const TensorSpec& a, const TensorSpec& b) {
    const int rank_a = layout_rank(a.dtype), rank_b = layout_rank(b.dtype);
    return rank_a != rank_b ? rank_a < rank_b : a.name < b.name;
  });
  for (const TensorSpec& spec : specs_) {
    require(!spec.name.empty() && spec.name != "__metadata__", "\"", spec.name, "\" cannot name a tensor");
    require(!safetensors_name(spec.dtype).empty(), "tensor \"", spec.name, "\" has type ", dtype_name(spec.dtype), ", which safetensors cannot hold");
    const std::int64_t begin = data_bytes_;
    require(!__builtin_add_overflow(begin, byte_count(spec.dtype, spec.shape), &data_bytes_), "the tensors are larger than a file can be");
    require(slots_.emplace(spec.name, Slot{begin, data_bytes_, 0}).second, "two tensors are named \"", spec.name, "\"");
  }
  for (const LateTensorSpec& spec : late)
    require(!slots_.contains(spec.name) && late_.emplace(spec.name, spec.max_bytes).second, "two tensors are named \"", spec.name, "\"");

  // The longest the header can become: every late entry with the widest numbers. Our reader must accept it; spaces fill what stays unused.
  std::string longest = header_text();
  for (const auto& [name, bytes] : late_) longest += Json(name).dump() + R"(,:{"dtype":"U8","shape":[],"data_offsets":[,]})" + std::string(60, ' ');
  const std::size_t padded = (longest.size() + 7) / 8 * 8;
  require(padded <= kMaxHeaderBytes, "the header would have ", padded, " bytes; the limit is ", kMaxHeaderBytes);
  parse_safetensors_header(header_text(), path.filename().string());
  data_start_ = static_cast<std::int64_t>(8 + padded);

  fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd_ < 0) fail(Code::io, "cannot create ", path.string(), ": ", std::strerror(errno));
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ >= 0) ::close(fd_);
}

std::string SafetensorsWriter::header_text() const {
  Json header = Json::object();
  if (!metadata_.empty()) {
    Json& stored = header["__metadata__"] = Json::object();
    for (const auto& [key, value] : metadata_) stored[key] = value;
  }
  // Names are unique, so members are appended without nlohmann's search for each (ordered objects are lists).
  auto& members = header.get_ref<Json::object_t&>();
  for (const TensorSpec& spec : specs_) {
    const Slot& slot = slots_.find(spec.name)->second;
    members.std::vector<Json::object_t::value_type, Json::object_t::allocator_type>::emplace_back(
        spec.name, Json{{"dtype", safetensors_name(spec.dtype)}, {"shape", spec.shape}, {"data_offsets", {slot.begin, slot.end}}});
  }
  try {
    return header.dump();
  } catch (const nlohmann::json::exception&) {
    fail(Code::invalid, "a tensor's name or metadata is not UTF-8");
  }
}

void SafetensorsWriter::write_at(std::int64_t offset, const void* data, std::int64_t bytes) {
  require(fd_ >= 0, path_.filename().string(), " is finished");
  const auto* from = static_cast<const char*>(data);
  for (std::int64_t done = 0; done < bytes;) {
    const auto written = ::pwrite(fd_, from + done, static_cast<std::size_t>(bytes - done), offset + done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(Code::io, "cannot write ", path_.string(), ": ", std::strerror(errno));
    done += written;
  }
}

void SafetensorsWriter::append(std::string_view name, const void* data, std::int64_t bytes) {
  const auto found = slots_.find(name);
  require(found != slots_.end(), "no tensor \"", name, "\" was announced for ", path_.filename().string());
  Slot& slot = found->second;
  require(bytes >= 0 && bytes <= slot.end - slot.begin - slot.filled, "tensor \"", name, "\" receives more bytes than its shape holds");
  write_at(data_start_ + slot.begin + slot.filled, data, bytes);
  slot.filled += bytes;
}

void SafetensorsWriter::append_late(std::string_view name, std::string_view bytes) {
  const auto found = late_.find(name);
  require(found != late_.end(), "no late tensor \"", name, "\" was announced for ", path_.filename().string(), ", or it was written");
  const auto length = static_cast<std::int64_t>(bytes.size());
  require(length <= found->second, "late tensor \"", name, "\" has ", length, " bytes; ", found->second, " were announced");
  write_at(data_start_ + data_bytes_, bytes.data(), length);
  slots_.emplace(name, Slot{data_bytes_, data_bytes_ + length, length});
  specs_.push_back({std::string(name), Dtype::u8, {length}});
  data_bytes_ += length;
  late_.erase(found);
}

void SafetensorsWriter::finish() {
  require(fd_ >= 0, path_.filename().string(), " is finished");
  require(late_.empty(), "tensor \"", late_.empty() ? "" : late_.begin()->first, "\" was not written");
  for (const auto& [name, slot] : slots_)
    require(slot.filled == slot.end - slot.begin, "tensor \"", name, "\" received ", slot.filled, " of ", slot.end - slot.begin, " bytes");
  std::string head(8, '\0');
  const auto length = static_cast<std::uint64_t>(data_start_ - 8);
  std::memcpy(head.data(), &length, 8);
  head += header_text();
  require(Code::internal, head.size() <= length + 8, "the header of ", path_.filename().string(), " outgrew its place");
  head.resize(length + 8, ' ');
  write_at(0, head.data(), static_cast<std::int64_t>(head.size()));
  const bool sized = ::ftruncate(fd_, data_start_ + data_bytes_) == 0;
  const bool synced = sized && ::fsync(fd_) == 0;
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
