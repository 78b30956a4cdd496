#include "formats/gguf_file.h"

#include <bit>
#include <cstring>
#include <set>

#include "core/error.h"
#include "formats/safetensors.h"

namespace engine {
namespace {

constexpr std::uint64_t kMaxKey = 65535;
constexpr std::uint64_t kMaxTensorName = 63;
constexpr std::uint32_t kMaxAlignment = 1 << 20;

// Takes numbers and strings off the front of the header.
class Cursor {
 public:
  Cursor(std::span<const std::uint8_t> file, std::string_view what) : file_(file), what_(what) {}

  template <class Number>
  Number number() {
    Number value{};
    std::memcpy(&value, take(sizeof value), sizeof value);
    return value;
  }
  std::string string(std::uint64_t most) {
    const auto length = number<std::uint64_t>();
    refuse(length <= most, "a string of ", length, " bytes where at most ", most, " are allowed");
    return {reinterpret_cast<const char*>(take(length)), static_cast<std::size_t>(length)};
  }
  // A count of things that take at least `each` bytes, so that a lie about it costs no memory.
  std::uint64_t count(std::uint64_t each) {
    const auto value = number<std::uint64_t>();
    refuse(value <= left() / each, "a count of ", value, " in the ", left(), " bytes that are left");
    return value;
  }
  std::uint64_t left() const noexcept { return file_.size() - at_; }
  std::uint64_t position() const noexcept { return at_; }
  template <class... Parts>
  void refuse(bool ok, const Parts&... parts) const {
    if (!ok) fail(Code::corrupt, what_, ": at byte ", at_, ": ", parts...);
  }
  std::string_view what() const noexcept { return what_; }

 private:
  const std::uint8_t* take(std::uint64_t bytes) {
    refuse(bytes <= left(), "the file ends in the middle of a value");
    const std::uint8_t* from = file_.data() + at_;
    at_ += bytes;
    return from;
  }

  std::span<const std::uint8_t> file_;
  std::string_view what_;
  std::uint64_t at_ = 0;
};

std::string shown(std::string_view name) {
  std::string out = "\"";
  for (const char c : name.substr(0, 120)) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return out + "\"";
}

template <class Stored, class Item>
std::vector<Item> read_items(Cursor& in) {
  const std::uint64_t count = in.count(sizeof(Stored));
  std::vector<Item> items(static_cast<std::size_t>(count));
  for (Item& item : items) item = static_cast<Item>(in.number<Stored>());
  return items;
}

std::vector<std::int32_t> read_flags(Cursor& in) {
  std::vector<std::int32_t> items = read_items<std::uint8_t, std::int32_t>(in);
  for (const std::int32_t item : items) in.refuse(item <= 1, "a boolean that is neither 0 nor 1");
  return items;
}

GgufValue read_array(Cursor& in, std::string_view key) {
  const auto item = in.number<std::uint32_t>();
  switch (static_cast<GgufType>(item)) {
    case GgufType::u8: return read_items<std::uint8_t, std::int32_t>(in);
    case GgufType::i8: return read_items<std::int8_t, std::int32_t>(in);
    case GgufType::u16: return read_items<std::uint16_t, std::int32_t>(in);
    case GgufType::i16: return read_items<std::int16_t, std::int32_t>(in);
    case GgufType::i32: return read_items<std::int32_t, std::int32_t>(in);
    case GgufType::f32: return read_items<float, float>(in);
    case GgufType::boolean: return read_flags(in);
    case GgufType::string: {
      std::vector<std::string> items(static_cast<std::size_t>(in.count(8)));
      for (std::string& text : items) text = in.string(in.left());
      return items;
    }
    case GgufType::u32:
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64:
    case GgufType::array: fail(Code::unsupported, in.what(), ": ", shown(key), " is an array of a type this reader does not know (", item, ")");
  }
  in.refuse(false, shown(key), " is an array of the unknown type ", item);
  return {};
}

GgufValue read_value(Cursor& in, std::string_view key) {
  const auto type = in.number<std::uint32_t>();
  switch (static_cast<GgufType>(type)) {
    case GgufType::u8: return std::uint32_t{in.number<std::uint8_t>()};
    case GgufType::i8: return std::int32_t{in.number<std::int8_t>()};
    case GgufType::u16: return std::uint32_t{in.number<std::uint16_t>()};
    case GgufType::i16: return std::int32_t{in.number<std::int16_t>()};
    case GgufType::u32: return in.number<std::uint32_t>();
    case GgufType::i32: return in.number<std::int32_t>();
    case GgufType::u64: return in.number<std::uint64_t>();
    case GgufType::i64: return in.number<std::int64_t>();
    case GgufType::f32: return in.number<float>();
    case GgufType::f64: return in.number<double>();
    case GgufType::boolean: {
      const auto value = in.number<std::uint8_t>();
      in.refuse(value <= 1, "a boolean that is neither 0 nor 1");
      return value == 1;
    }
    case GgufType::string: return in.string(in.left());
    case GgufType::array: return read_array(in, key);
  }
  in.refuse(false, shown(key), " has the unknown type ", type);
  return {};
}

struct Located {
  GgufTensor tensor;
  std::uint64_t offset = 0;
};

Located read_tensor_info(Cursor& in) {
  Located result;
  GgufTensor& tensor = result.tensor;
  tensor.name = in.string(kMaxTensorName);
  in.refuse(!tensor.name.empty(), "a tensor has no name");
  const auto dimensions = in.number<std::uint32_t>();
  in.refuse(dimensions >= 1 && dimensions <= 4, "tensor ", shown(tensor.name), " has ", dimensions, " dimensions");
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    const auto extent = in.number<std::uint64_t>();
    in.refuse(extent <= std::uint64_t{1} << 40, "tensor ", shown(tensor.name), " has the extent ", extent);
    tensor.shape.insert(tensor.shape.begin(), static_cast<std::int64_t>(extent));
  }
  const auto number = in.number<std::uint32_t>();
  const auto type = ggml_type_from_number(number);
  require(Code::unsupported, type.has_value(), in.what(), ": tensor ", shown(tensor.name), " is stored as ggml type ", number, ", which this reader does not know");
  tensor.type = *type;
  const GgmlLayout layout = ggml_layout(*type);
  tensor.values = element_count(tensor.shape);
  in.refuse(tensor.shape.back() % layout.values == 0, "tensor ", shown(tensor.name), " has rows of ", tensor.shape.back(), " values, no whole number of ",
            ggml_name(*type), " blocks");
  in.refuse(!__builtin_mul_overflow(tensor.values / layout.values, layout.bytes, &tensor.bytes), "the size of tensor ", shown(tensor.name), " overflows");
  result.offset = in.number<std::uint64_t>();
  return result;
}

std::uint64_t read_alignment(const GgufContents& contents, std::string_view what) {
  const auto found = contents.metadata.find(std::string_view("general.alignment"));
  if (found == contents.metadata.end()) return static_cast<std::uint64_t>(kGgufAlignment);
  const auto* alignment = std::get_if<std::uint32_t>(&found->second);
  require(Code::corrupt, alignment != nullptr && std::has_single_bit(*alignment) && *alignment >= 8 && *alignment <= kMaxAlignment, what,
          ": general.alignment is not a power of two from 8 to ", kMaxAlignment);
  return *alignment;
}

}  // namespace

GgufContents parse_gguf(std::span<const std::uint8_t> file, std::string_view what) {
  Cursor in(file, what);
  in.refuse(in.left() >= 24 && in.number<std::uint32_t>() == kGgufMagic, "the file does not begin as GGUF does");
  const auto version = in.number<std::uint32_t>();
  require(Code::unsupported, version == kGgufVersion, what, " is GGUF version ", version, "; this reader knows version ", kGgufVersion);
  const std::uint64_t tensors = in.count(1), entries = in.count(1);

  GgufContents contents;
  for (std::uint64_t i = 0; i < entries; ++i) {
    std::string key = in.string(kMaxKey);
    GgufValue value = read_value(in, key);
    in.refuse(contents.metadata.emplace(key, std::move(value)).second, "the metadata key ", shown(key), " appears twice");
  }
  const std::uint64_t alignment = read_alignment(contents, what);
  std::set<std::string> names;
  std::vector<std::uint64_t> offsets;
  for (std::uint64_t i = 0; i < tensors; ++i) {
    Located info = read_tensor_info(in);
    in.refuse(names.insert(info.tensor.name).second, "tensor ", shown(info.tensor.name), " appears twice");
    offsets.push_back(info.offset);
    contents.tensors.push_back(std::move(info.tensor));
  }
  const std::uint64_t header = in.position(), start = (header + alignment - 1) / alignment * alignment;
  std::uint64_t expected = 0;  // of the next tensor, in the data section; below the file's size, so no sum overflows
  const std::uint64_t data_bytes = file.size() > start ? file.size() - start : 0;
  for (std::size_t i = 0; i < contents.tensors.size(); ++i) {
    GgufTensor& tensor = contents.tensors[i];
    in.refuse(offsets[i] == expected, "tensor ", shown(tensor.name), " begins at ", offsets[i], " of the data, not at ", expected);
    const auto bytes = static_cast<std::uint64_t>(tensor.bytes);
    in.refuse(expected <= data_bytes && bytes <= data_bytes - expected, "tensor ", shown(tensor.name), " reaches past the file's end");
    tensor.data = bytes == 0 ? file.data() : file.data() + start + expected;
    expected = (expected + bytes + alignment - 1) / alignment * alignment;
  }
  in.refuse(data_bytes <= expected, data_bytes - expected, " bytes after the last tensor belong to none");
  return contents;
}

GgufFile::GgufFile(const std::filesystem::path& path) : file_(path), contents_(parse_gguf(file_.bytes(), path.filename().string())) {
  for (const GgufTensor& tensor : contents_.tensors) by_name_.emplace(tensor.name, &tensor);
}

const GgufTensor* GgufFile::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

const GgufTensor& GgufFile::at(std::string_view name) const {
  const GgufTensor* tensor = find(name);
  require(Code::corrupt, tensor != nullptr, file_.path().filename().string(), " has no tensor ", shown(name));
  return *tensor;
}

void GgufFile::release(const GgufTensor& tensor) const noexcept {
  file_.release(static_cast<std::size_t>(tensor.data - file_.bytes().data()), static_cast<std::size_t>(tensor.bytes));
}

}  // namespace engine
