#include "formats/safetensors_header.h"

#include <limits>
#include <optional>
#include <unordered_set>

#include "core/error.h"
#include "core/json.h"

namespace engine {
namespace {

constexpr std::size_t kMaxRank = 16;
constexpr std::size_t kMaxNameBytes = 4096;

// nlohmann's SAX events, in the only order a header may have them.
class HeaderReader {
 public:
  using number_integer_t = Json::number_integer_t;
  using number_unsigned_t = Json::number_unsigned_t;
  using number_float_t = Json::number_float_t;
  using string_t = Json::string_t;
  using binary_t = Json::binary_t;

  HeaderReader(std::string_view what, SafetensorsHeader& header) : what_(what), header_(header) {}

  bool start_object(std::size_t) {
    if (place_ == Place::outside) return go(Place::top);
    if (place_ == Place::top_value) {
      if (name_ == "__metadata__") return go(Place::metadata);
      dtype_.reset(), shape_.reset(), offsets_.reset();
      return go(Place::tensor);
    }
    unexpected("an object");
  }
  bool end_object() {
    if (place_ == Place::tensor) {
      finish_tensor();
      return go(Place::top);
    }
    if (place_ == Place::metadata) return go(Place::top);
    return go(Place::done);
  }
  bool key(string_t& key) {
    if (place_ == Place::top) {
      name_ = std::move(key);
      if (name_ != "__metadata__") check_name();
      refuse(names_.insert(name_).second, "the name ", shown(name_), " appears twice");
      return go(Place::top_value);
    }
    if (place_ == Place::metadata) {
      refuse(!header_.metadata.contains(key), "the metadata key ", shown(key), " appears twice");
      field_ = std::move(key);
      return go(Place::metadata_value);
    }
    if (key == "dtype") {
      refuse(!dtype_, "tensor ", shown(name_), " has \"dtype\" twice");
      return go(Place::dtype);
    }
    if (key == "shape") {
      refuse(!shape_, "tensor ", shown(name_), " has \"shape\" twice");
      return go(Place::shape);
    }
    if (key == "data_offsets") {
      refuse(!offsets_, "tensor ", shown(name_), " has \"data_offsets\" twice");
      return go(Place::offsets);
    }
    refuse(false, "tensor ", shown(name_), " has the unknown field ", shown(key));
    return false;
  }
  bool string(string_t& value) {
    if (place_ == Place::metadata_value) {
      header_.metadata.emplace(std::move(field_), std::move(value));
      return go(Place::metadata);
    }
    if (place_ != Place::dtype) unexpected("a string");
    dtype_ = dtype_from_safetensors(value);
    refuse(dtype_.has_value(), "tensor ", shown(name_), " has the unknown dtype ", shown(value));
    return go(Place::tensor);
  }
  bool start_array(std::size_t) {
    if (place_ == Place::shape) {
      shape_.emplace();
      return go(Place::shape_items);
    }
    if (place_ == Place::offsets) {
      offsets_.emplace();
      return go(Place::offset_items);
    }
    unexpected("an array");
  }
  bool end_array() { return go(Place::tensor); }
  bool number_unsigned(number_unsigned_t value) {
    if (place_ != Place::shape_items && place_ != Place::offset_items) unexpected("a number");
    refuse(value <= std::uint64_t{std::numeric_limits<std::int64_t>::max()}, "tensor ", shown(name_), " has a number beyond 2^63");
    auto& list = place_ == Place::shape_items ? *shape_ : *offsets_;
    refuse(list.size() < (place_ == Place::shape_items ? kMaxRank : 2), "tensor ", shown(name_),
           place_ == Place::shape_items ? text(" has more than ", kMaxRank, " dimensions") : std::string(" has more than two data offsets"));
    list.push_back(static_cast<std::int64_t>(value));
    return true;
  }
  bool number_integer(number_integer_t) { unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) { unexpected("a fractional number or one beyond 2^64"); }
  bool null() { unexpected("null"); }
  bool boolean(bool) { unexpected("true or false"); }
  bool binary(binary_t&) { unexpected("binary data"); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) {
    fail(Code::corrupt, what_, ": the header is not valid JSON at byte ", position);
  }

 private:
  enum class Place { outside, top, top_value, tensor, dtype, shape, shape_items, offsets, offset_items, metadata, metadata_value, done };

  bool go(Place next) {
    place_ = next;
    return true;
  }
  template <class... Parts>
  void refuse(bool ok, const Parts&... parts) const {
    if (!ok) fail(Code::corrupt, what_, ": ", parts...);
  }
  [[noreturn]] void unexpected(const char* seen) const {
    if (place_ == Place::outside) fail(Code::corrupt, what_, ": the header is ", seen, ", not an object");
    fail(Code::corrupt, what_, ": the entry of ", shown(name_), " has ", seen, " where the format allows none");
  }
  // A name from outside, safe to print: short, and with nothing but printable bytes.
  static std::string shown(const std::string& name) {
    std::string out = "\"";
    for (const char c : name.substr(0, 120)) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
    return out + (name.size() > 120 ? "…\"" : "\"");
  }
  void check_name() const {
    refuse(!name_.empty(), "a tensor has an empty name");
    refuse(name_.size() <= kMaxNameBytes, "the name ", shown(name_), " has ", name_.size(), " bytes; the limit is ", kMaxNameBytes);
    for (const char c : name_)
      refuse(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f && c != '/' && c != '\\', "the name ", shown(name_),
             " holds a control character or a path separator");
  }
  void finish_tensor() {
    refuse(dtype_.has_value(), "tensor ", shown(name_), " has no \"dtype\"");
    refuse(shape_.has_value(), "tensor ", shown(name_), " has no \"shape\"");
    refuse(offsets_ && offsets_->size() == 2, "tensor ", shown(name_), " does not have two data offsets");
    header_.entries.push_back({std::move(name_), *dtype_, std::move(*shape_), (*offsets_)[0], (*offsets_)[1]});
    name_.clear();
  }

  std::string_view what_;
  SafetensorsHeader& header_;
  Place place_ = Place::outside;
  std::string name_, field_;
  std::unordered_set<std::string> names_;
  std::optional<Dtype> dtype_;
  std::optional<std::vector<std::int64_t>> shape_, offsets_;
};

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json, std::string_view what) {
  // The format demands it, and it shuts out the byte-order mark that the JSON reader would skip.
  require(Code::corrupt, !json.empty() && json.front() == '{', what, ": the header does not begin with '{'");
  // The JSON reader takes a NUL for the end of its input and would not see what follows.
  require(Code::corrupt, json.find('\0') == std::string_view::npos, what, ": the header holds a NUL byte");
  SafetensorsHeader header;
  HeaderReader reader(what, header);
  Json::sax_parse(json.begin(), json.end(), &reader);  // every fault throws
  return header;
}

}  // namespace engine
