#include "model/rope_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <string_view>

#include "core/error.h"

namespace engine {
namespace {

constexpr double kGemmaLocalTheta = 10000;

constexpr std::array kKnownKeys = std::to_array<std::string_view>(
    {"rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "attention_factor",
     "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "partial_rotary_factor"});

double number_at_least(const Json& settings, const char* key, double least, std::string_view what) {
  const double value = json_number(settings, key, what);
  require(Code::corrupt, std::isfinite(value) && value >= least, what, ": ", key, " is ", value, "; it must be at least ", least);
  return value;
}

void read_yarn(const Json& settings, std::string_view what, std::int64_t context, RopeParameters& rope) {
  rope.type = RopeType::yarn;
  rope.original_context = find_json_int(settings, "original_max_position_embeddings", what).value_or(context);
  require(Code::corrupt, rope.original_context > 0, what, ": original_max_position_embeddings is ", rope.original_context);
  rope.factor = find_json_number(settings, "factor", what) ? number_at_least(settings, "factor", 1, what)
                                                           : static_cast<double>(context) / static_cast<double>(rope.original_context);
  // As transformers: 0 or absent means the default.
  const auto or_default = [&](const char* key, double fallback) {
    const double value = find_json_number(settings, key, what).value_or(0);
    return value == 0 ? fallback : value;
  };
  rope.beta_fast = or_default("beta_fast", rope.beta_fast);
  rope.beta_slow = or_default("beta_slow", rope.beta_slow);
  rope.mscale = or_default("mscale", 0);
  rope.mscale_all_dim = or_default("mscale_all_dim", 0);
  rope.attention_factor = or_default("attention_factor", 0);
  rope.truncate = find_json_bool(settings, "truncate", what).value_or(true);
}

// `settings` is one rope dictionary; null means the default type.
RopeParameters read_rope(const Json& settings, std::string_view what, double default_theta, std::int64_t head_dim, std::int64_t context) {
  RopeParameters rope;
  rope.rotary_dim = head_dim;
  rope.theta = default_theta;
  rope.original_context = context;
  if (settings.is_null()) return rope;
  require(Code::corrupt, settings.is_object(), what, " is not an object");
  for (const auto& [key, value] : settings.items())
    require(Code::unsupported, std::ranges::find(kKnownKeys, key) != kKnownKeys.end(), what, ": ", key, " is not supported");
  require(Code::unsupported, find_json_number(settings, "partial_rotary_factor", what).value_or(1) == 1, what,
          ": a partial_rotary_factor other than 1 is not supported");
  if (find_json_number(settings, "rope_theta", what)) rope.theta = number_at_least(settings, "rope_theta", 1, what);

  auto type = find_json_string(settings, "rope_type", what);
  if (!type) type = find_json_string(settings, "type", what);
  if (!type || *type == "default") return rope;
  if (*type == "linear" || *type == "dynamic") {
    rope.type = *type == "linear" ? RopeType::linear : RopeType::dynamic;
    rope.factor = number_at_least(settings, "factor", 1, what);
  } else if (*type == "llama3") {
    rope.type = RopeType::llama3;
    rope.factor = number_at_least(settings, "factor", 1, what);
    rope.low_freq_factor = number_at_least(settings, "low_freq_factor", 1e-9, what);
    rope.high_freq_factor = number_at_least(settings, "high_freq_factor", 1e-9, what);
    require(Code::corrupt, rope.high_freq_factor > rope.low_freq_factor, what, ": high_freq_factor must exceed low_freq_factor");
    rope.original_context = find_json_int(settings, "original_max_position_embeddings", what).value_or(context);
    require(Code::corrupt, rope.original_context > 0, what, ": original_max_position_embeddings is ", rope.original_context);
  } else if (*type == "yarn") {
    read_yarn(settings, what, context, rope);
  } else {
    fail(Code::unsupported, what, ": rope type \"", *type, "\" is not supported; this engine runs default, linear, dynamic, llama3 and yarn");
  }
  return rope;
}

Json member_or_null(const Json& object, const char* key) { return object.is_object() && object.contains(key) ? object.at(key) : Json(nullptr); }

double theta_or(const Json& config, const char* key, double fallback) {
  const double theta = find_json_number(config, key, "config.json").value_or(fallback);
  require(Code::corrupt, std::isfinite(theta) && theta >= 1, "config.json: ", key, " is ", theta, "; it must be at least 1");
  return theta;
}

}  // namespace

std::vector<RopeParameters> read_ropes(const Json& config, double default_theta, bool local_and_global, std::int64_t head_dim, std::int64_t context) {
  const double theta = theta_or(config, "rope_theta", default_theta);
  const Json parameters = member_or_null(config, "rope_parameters"), scaling = member_or_null(config, "rope_scaling");
  if (!local_and_global) {
    const bool new_style = !parameters.is_null();
    return {read_rope(new_style ? parameters : scaling, new_style ? "config.json: rope_parameters" : "config.json: rope_scaling", theta, head_dim, context)};
  }
  const double local_theta = theta_or(config, "rope_local_base_freq", kGemmaLocalTheta);
  if (parameters.is_null())  // transformers 4: scaling applies to the full layers alone
    return {read_rope(scaling, "config.json: rope_scaling", theta, head_dim, context),
            read_rope(nullptr, "config.json: rope_local_base_freq", local_theta, head_dim, context)};
  require(Code::corrupt, parameters.is_object(), "config.json: rope_parameters is not an object");
  for (const auto& [key, value] : parameters.items())
    require(Code::unsupported, key == "full_attention" || key == "sliding_attention", "config.json: rope_parameters.", key,
            " is not supported; this family has full_attention and sliding_attention");
  return {read_rope(member_or_null(parameters, "full_attention"), "config.json: rope_parameters.full_attention", theta, head_dim, context),
          read_rope(member_or_null(parameters, "sliding_attention"), "config.json: rope_parameters.sliding_attention", local_theta, head_dim, context)};
}

}  // namespace engine
