#include "formats/gguf_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <set>

#include "core/error.h"

namespace engine {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is little-endian and is written as the numbers lie in memory");
constexpr std::size_t kMaxTensorName = 63;  // ggml keeps names in 64 bytes, the terminating NUL included

std::int64_t padded(std::int64_t bytes) { return (bytes + kGgufAlignment - 1) / kGgufAlignment * kGgufAlignment; }

template <class Number>
void put(std::string& out, Number number) {
  out.append(reinterpret_cast<const char*>(&number), sizeof number);
}
void put_string(std::string& out, std::string_view text) {
  put(out, static_cast<std::uint64_t>(text.size()));
  out.append(text);
}
void put_type(std::string& out, GgufType type) { put(out, static_cast<std::uint32_t>(type)); }
void put_array(std::string& out, GgufType item, std::size_t count) {
  put_type(out, GgufType::array);
  put_type(out, item);
  put(out, static_cast<std::uint64_t>(count));
}

struct PutValue {
  std::string& out;
  void operator()(std::uint32_t value) const { put_type(out, GgufType::u32), put(out, value); }
  void operator()(std::int32_t value) const { put_type(out, GgufType::i32), put(out, value); }
  void operator()(std::uint64_t value) const { put_type(out, GgufType::u64), put(out, value); }
  void operator()(std::int64_t value) const { put_type(out, GgufType::i64), put(out, value); }
  void operator()(float value) const { put_type(out, GgufType::f32), put(out, value); }
  void operator()(double value) const { put_type(out, GgufType::f64), put(out, value); }
  void operator()(bool value) const { put_type(out, GgufType::boolean), put(out, static_cast<std::uint8_t>(value)); }
  void operator()(const std::string& value) const { put_type(out, GgufType::string), put_string(out, value); }
  void operator()(const std::vector<std::int32_t>& values) const {
    put_array(out, GgufType::i32, values.size());
    for (const std::int32_t value : values) put(out, value);
  }
  void operator()(const std::vector<float>& values) const {
    put_array(out, GgufType::f32, values.size());
    for (const float value : values) put(out, value);
  }
  void operator()(const std::vector<std::string>& values) const {
    put_array(out, GgufType::string, values.size());
    for (const std::string& value : values) put_string(out, value);
  }
};

}  // namespace

std::int64_t GgufTensorSpec::values() const noexcept {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) count *= extent;
  return count;
}

std::int64_t GgufTensorSpec::bytes() const noexcept {
  const GgmlLayout layout = ggml_layout(type);
  return values() / layout.values * layout.bytes;
}

GgufWriter::GgufWriter(const std::filesystem::path& path, GgufMetadata metadata, std::vector<GgufTensorSpec> tensors)
    : path_(path), metadata_(std::move(metadata)), tensors_(std::move(tensors)) {
  std::set<std::string_view> keys;
  for (const auto& [key, value] : metadata_) require(keys.insert(key).second, "two metadata entries are named \"", key, "\"");
  for (const GgufTensorSpec& tensor : tensors_) {
    require(!tensor.name.empty() && tensor.name.size() <= kMaxTensorName, "\"", tensor.name, "\" cannot name a GGUF tensor: names have 1 to ", kMaxTensorName,
            " bytes");
    require(!tensor.shape.empty() && tensor.shape.size() <= 4, tensor.name, " has ", tensor.shape.size(), " dimensions; GGUF holds 1 to 4");
    require(tensor.shape.back() % ggml_layout(tensor.type).values == 0, tensor.name, " has rows of ", tensor.shape.back(), " values, no whole number of ",
            ggml_name(tensor.type), " blocks");
    require(slots_.emplace(tensor.name, Slot{data_bytes_, tensor.bytes(), 0}).second, "two tensors are named \"", tensor.name, "\"");
    data_bytes_ += padded(tensor.bytes());
  }
  data_start_ = padded(static_cast<std::int64_t>(header().size()));
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd_ < 0) fail(Code::io, "cannot create ", path.string(), ": ", std::strerror(errno));
}

GgufWriter::~GgufWriter() {
  if (fd_ >= 0) ::close(fd_);
}

std::string GgufWriter::header() const {
  std::string out;
  put(out, kGgufMagic);
  put(out, kGgufVersion);
  put(out, static_cast<std::uint64_t>(tensors_.size()));
  put(out, static_cast<std::uint64_t>(metadata_.size()));
  for (const auto& [key, value] : metadata_) {
    put_string(out, key);
    std::visit(PutValue{out}, value);
  }
  for (const GgufTensorSpec& tensor : tensors_) {
    put_string(out, tensor.name);
    put(out, static_cast<std::uint32_t>(tensor.shape.size()));
    for (auto extent = tensor.shape.rbegin(); extent != tensor.shape.rend(); ++extent) put(out, static_cast<std::uint64_t>(*extent));
    put(out, static_cast<std::uint32_t>(tensor.type));
    put(out, static_cast<std::uint64_t>(slot(tensor.name).begin));
  }
  return out;
}

const GgufWriter::Slot& GgufWriter::slot(std::string_view name) const {
  const auto found = slots_.find(name);
  require(found != slots_.end(), "no tensor \"", name, "\" was announced for ", path_.filename().string());
  return found->second;
}

void GgufWriter::write_at(std::int64_t offset, const void* data, std::int64_t bytes) {
  require(fd_ >= 0, path_.filename().string(), " is finished");
  const auto* from = static_cast<const char*>(data);
  for (std::int64_t done = 0; done < bytes;) {
    const auto written = ::pwrite(fd_, from + done, static_cast<std::size_t>(bytes - done), offset + done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(Code::io, "cannot write ", path_.string(), ": ", std::strerror(errno));
    done += written;
  }
}

void GgufWriter::append(std::string_view name, const void* data, std::int64_t bytes) {
  const auto found = slots_.find(name);
  require(found != slots_.end(), "no tensor \"", name, "\" was announced for ", path_.filename().string());
  Slot& to = found->second;
  require(bytes >= 0 && bytes <= to.bytes - to.filled, "tensor \"", name, "\" receives more bytes than it holds");
  write_at(data_start_ + to.begin + to.filled, data, bytes);
  to.filled += bytes;
}

void GgufWriter::read(std::string_view name, std::int64_t offset, void* data, std::int64_t bytes) const {
  const Slot& from = slot(name);
  require(fd_ >= 0 && offset >= 0 && bytes >= 0 && bytes <= from.filled - offset, "tensor \"", name, "\" has not received bytes ", offset, " to ", offset + bytes);
  auto* to = static_cast<char*>(data);
  for (std::int64_t done = 0; done < bytes;) {
    const auto got = ::pread(fd_, to + done, static_cast<std::size_t>(bytes - done), data_start_ + from.begin + offset + done);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) fail(Code::io, "cannot read ", path_.string(), " back: ", got == 0 ? "it ended" : std::strerror(errno));
    done += got;
  }
}

void GgufWriter::set(std::string_view key, GgufValue value) {
  const auto found = std::ranges::find(metadata_, key, &GgufMetadata::value_type::first);
  require(found != metadata_.end(), "no metadata \"", key, "\" was announced for ", path_.filename().string());
  require(found->second.index() == value.index(), "metadata \"", key, "\" was announced with another type");
  found->second = std::move(value);
}

void GgufWriter::write_header() {
  for (const auto& [name, filled] : slots_)
    require(filled.filled == filled.bytes, "tensor \"", name, "\" received ", filled.filled, " of ", filled.bytes, " bytes");
  std::string head = header();
  require(static_cast<std::int64_t>(head.size()) <= data_start_, "the metadata of ", path_.filename().string(), " outgrew its place");
  head.resize(static_cast<std::size_t>(data_start_), '\0');
  write_at(0, head.data(), static_cast<std::int64_t>(head.size()));
  if (::ftruncate(fd_, file_bytes()) != 0)  // the padding of the last tensor
    fail(Code::io, "cannot finish ", path_.string(), ": ", std::strerror(errno));
}

void GgufWriter::finish() {
  write_header();
  const bool synced = ::fsync(fd_) == 0;
  const int reason = errno;
  const bool closed = ::close(fd_) == 0;
  fd_ = -1;
  if (!synced || !closed) fail(Code::io, "cannot finish ", path_.string(), ": ", std::strerror(synced ? errno : reason));
}

}  // namespace engine
