#include "generation.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <limits>
#include <mutex>
#include <optional>

#include "arguments.h"
#include "convert.h"
#include "model_handle.h"
#include "step_mailbox.h"
#include "train/backend.h"

namespace engine::addon {
namespace {

constexpr std::int64_t kMaxId = std::numeric_limits<std::uint32_t>::max();

std::uint32_t read_id(Napi::Value value, const char* name) { return static_cast<std::uint32_t>(read_integer(value, name, 0, kMaxId)); }

Sampling read_sampling(Napi::Value value) {
  const auto object = read_object(value, "sampling");
  Sampling sampling;
  sampling.temperature = read_number(object.Get("temperature"), "temperature");
  sampling.top_p = read_number(object.Get("topP"), "topP");
  sampling.top_k = read_integer(object.Get("topK"), "topK", 0, kMaxId);
  sampling.min_p = read_number(object.Get("minP"), "minP");
  sampling.repetition_penalty = read_number(object.Get("repetitionPenalty"), "repetitionPenalty");
  sampling.presence_penalty = read_number(object.Get("presencePenalty"), "presencePenalty");
  sampling.frequency_penalty = read_number(object.Get("frequencyPenalty"), "frequencyPenalty");
  sampling.max_tokens = read_integer(object.Get("maxTokens"), "maxTokens", 1, kMaxId);
  sampling.top_logprobs = read_integer(object.Get("logprobs"), "logprobs", 0, 1024);
  const Napi::Value seed = object.Get("seed");
  require(seed.IsBigInt(), "seed is not a bigint");
  bool lossless = false;
  sampling.seed = seed.As<Napi::BigInt>().Uint64Value(&lossless);
  require(lossless, "seed is not in 0 to 2^64 - 1");
  const Napi::Value stops = object.Get("stopTokenIds"), biases = object.Get("logitBias");
  require(stops.IsArray(), "stopTokenIds is not an array");
  require(biases.IsArray(), "logitBias is not an array");
  for (std::uint32_t i = 0; i < stops.As<Napi::Array>().Length(); ++i) sampling.stop_token_ids.push_back(read_id(stops.As<Napi::Array>().Get(i), "a stop token id"));
  for (std::uint32_t i = 0; i < biases.As<Napi::Array>().Length(); ++i) {
    const auto bias = read_object(biases.As<Napi::Array>().Get(i), "a logit bias");
    sampling.logit_bias.push_back({read_id(bias.Get("tokenId"), "tokenId"), static_cast<float>(read_number(bias.Get("bias"), "bias"))});
  }
  return sampling;
}

// 2^32 − 1 is none; from 2^31 on it is what opens a bracket.
std::int32_t read_next(std::uint32_t next) {
  constexpr std::uint32_t kOpens = std::uint32_t{1} << 31;
  if (next == std::numeric_limits<std::uint32_t>::max()) return ByteAutomaton::kDead;
  return (next & kOpens) != 0 ? ByteAutomaton::opening(static_cast<std::int32_t>(next & ~kOpens)) : static_cast<std::int32_t>(next);
}

std::vector<std::int32_t> read_int32s(Napi::Value value, const char* name) {
  const std::vector<std::uint32_t> list = read_uint32s(value, name);
  return {list.begin(), list.end()};
}

ByteAutomaton read_automaton(Napi::Value value) {
  const auto object = read_object(value, "automaton");
  ByteAutomaton automaton;
  automaton.class_of = read_bytes(object.Get("classOf"), "classOf");
  automaton.classes = read_integer(object.Get("classes"), "classes", 1, 256);
  for (const std::uint32_t next : read_uint32s(object.Get("next"), "next")) automaton.next.push_back(read_next(next));
  automaton.accepting = read_bytes(object.Get("accepting"), "accepting");
  const Napi::Value stack_value = object.Get("stack");
  if (is_absent(stack_value)) return automaton;
  const auto stack = read_object(stack_value, "stack");
  automaton.outcomes = read_int32s(stack.Get("outcomes"), "outcomes");
  automaton.heights = read_int32s(stack.Get("heights"), "heights");
  const std::vector<std::int32_t> returns = read_int32s(stack.Get("returns"), "returns");
  require(returns.size() % 3 == 0, "returns has ", returns.size(), " numbers; three make one");
  for (std::size_t i = 0; i < returns.size(); i += 3) automaton.returns.push_back({returns[i], returns[i + 1], returns[i + 2]});
  return automaton;
}

Napi::Value top_to_js(Napi::Env env, const GeneratedToken& token) {
  auto top = Napi::Array::New(env, token.top.size());
  for (std::size_t i = 0; i < token.top.size(); ++i) {
    auto entry = Napi::Object::New(env);
    entry.Set("tokenId", to_js(env, std::int64_t{token.top[i].token}));
    entry.Set("logprob", to_js(env, static_cast<double>(token.top[i].logprob)));
    top.Set(static_cast<std::uint32_t>(i), entry);
  }
  return top;
}

// NativeSteps: the numbers of all steps in one array, since every object made here costs a token's share of JavaScript's time.
Napi::Value steps_to_js(Napi::Env env, const std::vector<GeneratedToken>& tokens) {
  constexpr std::size_t kFields = 4;
  auto numbers = Napi::Float64Array::New(env, kFields * tokens.size());
  double* at = numbers.Data();
  for (const GeneratedToken& token : tokens) {
    *at++ = static_cast<double>(token.token);
    *at++ = static_cast<double>(token.logprob);
    *at++ = static_cast<double>(token.cached);
    *at++ = static_cast<double>(token.finish);
  }
  return numbers;
}

Napi::Value tops_to_js(Napi::Env env, const std::vector<GeneratedToken>& tokens) {
  if (std::ranges::all_of(tokens, [](const GeneratedToken& token) { return token.top.empty(); })) return env.Null();
  auto tops = Napi::Array::New(env, tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) tops.Set(static_cast<std::uint32_t>(i), top_to_js(env, tokens[i]));
  return tops;
}

// What a request produced and JavaScript has not taken yet. However many tokens wait, one message is on its way.
class StepBuffer final : public StepMailbox::Letter, public std::enable_shared_from_this<StepBuffer> {
 public:
  StepBuffer(std::shared_ptr<StepMailbox> mailbox, std::uint64_t callback, StepMailbox::Clock::duration wait)
      : mailbox_(std::move(mailbox)), callback_(callback), wait_(wait) {}

  void add(const GeneratedToken& token) {
    const std::lock_guard lock(mutex_);
    tokens_.push_back(token);
    const bool first = !begun_;
    begun_ = true;
    if (first || wait_ == StepMailbox::Clock::duration::zero()) {
      ring();
    } else if (!rung_ && !waits_) {
      waits_ = true;
      mailbox_->put(shared_from_this(), wait_);
    }
  }
  void end(const Error* error) {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    if (error != nullptr) fault_ = Fault{error->code(), error->message()};
    ring();
  }

 private:
  void ring() {
    if (rung_) return;
    rung_ = true;
    mailbox_->put(shared_from_this());
  }
  void deliver(Napi::Env env) override {
    std::vector<GeneratedToken> tokens;
    std::optional<Fault> fault;
    bool ended = false;
    {
      const std::lock_guard lock(mutex_);
      tokens.swap(tokens_);
      fault = fault_;
      ended = ended_;
      rung_ = waits_ = false;
    }
    if (tokens.empty() && !ended) return;  // an urgent letter took what this one was to bring
    Context& context = Context::of(env);
    const Napi::Function function = context.callback(callback_);
    if (function.IsEmpty()) return;
    if (ended) context.drop_callback(env, callback_);
    function.Call({steps_to_js(env, tokens), tops_to_js(env, tokens), to_js(env, ended), fault ? js_error(env, fault->code, fault->message).Value() : env.Null()});
  }

  std::shared_ptr<StepMailbox> mailbox_;
  std::uint64_t callback_;
  StepMailbox::Clock::duration wait_;
  std::mutex mutex_;
  std::vector<GeneratedToken> tokens_;
  std::optional<Fault> fault_;
  bool begun_ = false, ended_ = false, rung_ = false, waits_ = false;
};

// A sequence's vector on its way, or why there is none.
class VectorLetter final : public StepMailbox::Letter, public std::enable_shared_from_this<VectorLetter> {
 public:
  VectorLetter(std::shared_ptr<StepMailbox> mailbox, std::uint64_t callback) : mailbox_(std::move(mailbox)), callback_(callback) {}

  void fill(std::vector<float> vector) { vector_ = std::move(vector); }
  void end(const Error* error) {
    if (error != nullptr) fault_ = Fault{error->code(), error->message()};
    mailbox_->put(shared_from_this());
  }

 private:
  void deliver(Napi::Env env) override {
    Context& context = Context::of(env);
    const Napi::Function function = context.callback(callback_);
    if (function.IsEmpty()) return;
    context.drop_callback(env, callback_);
    if (fault_) {
      function.Call({env.Null(), js_error(env, fault_->code, fault_->message).Value()});
      return;
    }
    auto values = Napi::Float32Array::New(env, vector_.size());
    std::ranges::copy(vector_, values.Data());
    function.Call({values, env.Null()});
  }

  std::shared_ptr<StepMailbox> mailbox_;
  std::uint64_t callback_;
  std::vector<float> vector_;
  std::optional<Fault> fault_;
};

void append_node(std::vector<std::uint32_t>& words, std::uint64_t node) {
  words.push_back(static_cast<std::uint32_t>(node));
  words.push_back(static_cast<std::uint32_t>(node >> 32));
}

std::vector<std::uint32_t> words_of(const std::vector<PrefixChange>& changes) {
  std::vector<std::uint32_t> words;
  for (const PrefixChange& change : changes) {
    words.push_back(change.stored ? 1 : 0);
    append_node(words, change.node);
    if (!change.stored) continue;
    append_node(words, change.parent);
    std::array<std::uint32_t, std::tuple_size_v<PrefixScope> / 4> scope;
    std::memcpy(scope.data(), change.scope.data(), change.scope.size());
    words.insert(words.end(), scope.begin(), scope.end());
    words.push_back(static_cast<std::uint32_t>(change.tokens.size()));
    words.insert(words.end(), change.tokens.begin(), change.tokens.end());
  }
  return words;
}

// Changes of the cache on their way, or word of its end.
class CacheLetter final : public StepMailbox::Letter {
 public:
  CacheLetter(std::uint64_t callback, std::vector<std::uint32_t> words, bool whole) : callback_(callback), words_(std::move(words)), whole_(whole) {}

 private:
  void deliver(Napi::Env env) override {
    const Napi::Function function = Context::of(env).callback(callback_);
    if (function.IsEmpty()) return;
    auto words = Napi::Uint32Array::New(env, words_.size());
    std::ranges::copy(words_, words.Data());
    function.Call({words, to_js(env, whole_)});
  }
  std::uint64_t callback_;
  std::vector<std::uint32_t> words_;
  bool whole_;
};

class CacheEnd final : public StepMailbox::Letter {
 public:
  explicit CacheEnd(std::uint64_t callback) : callback_(callback) {}

 private:
  void deliver(Napi::Env env) override {
    const Napi::Function function = Context::of(env).callback(callback_);
    if (!function.IsEmpty()) function.Call({env.Null(), to_js(env, false)});
    Context::of(env).drop_callback(env, callback_);
  }
  std::uint64_t callback_;
};

Pooling read_pooling(Napi::Value value) {
  const std::string name = read_string(value, "pooling");
  if (name == "last") return Pooling::last;
  require(name == "mean", "pooling is '", name, "'; use mean or last");
  return Pooling::mean;
}

}  // namespace

const std::shared_ptr<Generator>& ModelHandle::generator_of(Napi::Env env, const std::shared_ptr<ModelHandle>& self) {
  if (!self->generator_) {
    const auto mailbox = std::make_shared<StepMailbox>(Context::of(env).queue());
    GenerationSettings settings;
    settings.on_step = [mailbox] { mailbox->send(); };
    self->set_generator(env, self, create_generator(self->object(), self->device_, settings), mailbox);
  }
  return self->generator_;
}

void ModelHandle::set_generator(Napi::Env env, const std::shared_ptr<ModelHandle>& self, std::shared_ptr<Generator> generator, std::shared_ptr<StepMailbox> mailbox) {
  require(!self->closed(), "the model was closed while its generator was made");
  require(!self->generator_, "the model has a generator already");
  self->mailbox_ = std::move(mailbox);
  self->generator_ = std::move(generator);
  Context::of(env).at_shut_down(self, [weak = std::weak_ptr<ModelHandle>(self)] {
    if (const auto handle = weak.lock()) handle->generator_.reset();
  });
}

std::shared_ptr<const void> ModelHandle::take() {
  // Freed together: the generator first, which ends its requests and joins its thread.
  struct Both {
    std::shared_ptr<const void> model;
    std::shared_ptr<Generator> generator;
  };
  return std::make_shared<const Both>(TypedHandle<Model>::take(), std::move(generator_));
}

std::shared_ptr<ModelHandle> model_of(Napi::Value value) {
  auto model = std::dynamic_pointer_cast<ModelHandle>(handle_of<Model>(value, "model"));
  require(Code::internal, model != nullptr, "a model's handle is of another kind");
  return model;
}

Napi::Value create_vocabulary(const Napi::CallbackInfo& info) {
  auto bytes = read_bytes(info[0], "bytes");
  auto offsets = read_uint32s(info[1], "offsets");
  return promise_of(
      info.Env(), on_own_thread(info.Env()),
      [bytes = std::move(bytes), offsets = std::move(offsets)] { return std::shared_ptr<const TokenTrie>(std::make_shared<TokenTrie>(bytes, offsets)); },
      [](Napi::Env env, std::shared_ptr<const TokenTrie>& trie) {
        return wrap_handle(env, std::make_shared<TypedHandle<const TokenTrie>>("vocabulary", Context::of(env).threads(), std::move(trie)));
      });
}

Napi::Value create_constraint(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto vocabulary = handle_of<const TokenTrie>(info[0], "vocabulary");
  std::shared_ptr<const Constraint> constraint = std::make_shared<Constraint>(vocabulary->object(), read_automaton(info[1]));
  return wrap_handle(env, std::make_shared<TypedHandle<const Constraint>>("constraint", Context::of(env).threads(), std::move(constraint)));
}

Napi::Value open_generator(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto model = model_of(info[0]);
  const auto options = read_object(info[1], "options");
  const auto mailbox = std::make_shared<StepMailbox>(Context::of(env).queue());
  GenerationSettings settings;
  settings.max_running = read_integer(options.Get("maxRunning"), "maxRunning", 1, 4096);
  settings.memory_budget = read_integer(options.Get("memoryBudget"), "memoryBudget", 0, std::int64_t{1} << 50);
  if (const Napi::Value same = options.Get("sameForAnyBatch"); !is_absent(same))
    settings.order = read_boolean(same, "sameForAnyBatch") ? SumOrder::same_for_any_rows : SumOrder::fastest;
  settings.most_growth = read_integer(options.Get("mostStepGrowth"), "mostStepGrowth", 1, 64);
  settings.on_step = [mailbox] { mailbox->send(); };
  return promise_of(
      env, on_own_thread(env),
      [object = model->object(), device = model->device(), settings] { return std::shared_ptr<Generator>(create_generator(object, device, settings)); },
      [model, mailbox](Napi::Env on, std::shared_ptr<Generator>& generator) -> Napi::Value {
        model->set_generator(on, model, generator, mailbox);
        auto object = Napi::Object::New(on);
        object.Set("device", to_js(on, generator->device()));
        object.Set("memory", to_js(on, generator->memory_table()));
        object.Set("totalBlocks", to_js(on, generator->load().total_blocks));
        return object;
      });
}

Napi::Value generate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto model = model_of(info[0]);
  GenerateRequest request;
  request.tokens = read_uint32s(info[1], "tokens");
  if (!is_absent(info[2])) request.adapter = handle_of<const LoraAdapter>(info[2], "adapter")->object();
  request.sampling = read_sampling(info[3]);
  const auto options = read_object(info[4], "options");
  request.priority = static_cast<Priority>(read_integer(options.Get("priority"), "priority", 0, 2));
  if (const Napi::Value scope = options.Get("prefixScope"); !is_absent(scope)) {
    const std::vector<std::uint8_t> bytes = read_bytes(scope, "prefixScope");
    request.scope.emplace();
    require(bytes.size() == request.scope->size(), "prefixScope has ", bytes.size(), " bytes, not ", request.scope->size());
    std::ranges::copy(bytes, request.scope->begin());
  }
  request.generated = read_integer(options.Get("generated"), "generated", 0, kMaxId);
  request.scored = read_integer(options.Get("scored"), "scored", 0, kMaxId);
  if (const Napi::Value constraint = options.Get("constraint"); !is_absent(constraint))
    request.sampling.constraint = handle_of<const Constraint>(constraint, "constraint")->object();
  const auto wait = std::chrono::milliseconds(read_integer(options.Get("gatherMs"), "gatherMs", 0, 60'000));
  require(info[5].IsFunction(), "onSteps is not a function");
  const auto& generator = ModelHandle::generator_of(env, model);

  Context& context = Context::of(env);
  const std::uint64_t callback = context.keep_callback(env, info[5].As<Napi::Function>(), true);
  const auto buffer = std::make_shared<StepBuffer>(model->mailbox(), callback, wait);
  try {
    const auto id = generator->submit(std::move(request), {[buffer](const GeneratedToken& token) { buffer->add(token); }, [buffer](const Error* error) { buffer->end(error); }});
    return to_js(env, static_cast<std::int64_t>(id));
  } catch (...) {
    context.drop_callback(env, callback);
    throw;
  }
}

Napi::Value embed(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto model = model_of(info[0]);
  GenerateRequest request;
  request.tokens = read_uint32s(info[1], "tokens");
  if (!is_absent(info[2])) request.adapter = handle_of<const LoraAdapter>(info[2], "adapter")->object();
  request.pooling = read_pooling(info[3]);
  request.priority = static_cast<Priority>(read_integer(info[4], "priority", 0, 2));
  require(info[5].IsFunction(), "onEnd is not a function");
  const auto& generator = ModelHandle::generator_of(env, model);

  Context& context = Context::of(env);
  const std::uint64_t callback = context.keep_callback(env, info[5].As<Napi::Function>(), true);
  const auto letter = std::make_shared<VectorLetter>(model->mailbox(), callback);
  GenerateListener listener;
  listener.on_vector = [letter](std::vector<float> vector) { letter->fill(std::move(vector)); };
  listener.on_end = [letter](const Error* error) { letter->end(error); };
  try {
    return to_js(env, static_cast<std::int64_t>(generator->submit(std::move(request), std::move(listener))));
  } catch (...) {
    context.drop_callback(env, callback);
    throw;
  }
}

Napi::Value watch_cache(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto model = model_of(info[0]);
  require(info[1].IsFunction(), "onChanges is not a function");
  const auto& generator = ModelHandle::generator_of(env, model);
  Context& context = Context::of(env);
  const std::uint64_t callback = context.keep_callback(env, info[1].As<Napi::Function>(), false);
  const auto mailbox = model->mailbox();
  try {
    const auto watch = generator->watch_cache({[mailbox, callback](const std::vector<PrefixChange>& changes, bool whole) {
                                                 mailbox->put(std::make_shared<CacheLetter>(callback, words_of(changes), whole));
                                               },
                                               [mailbox, callback] { mailbox->put(std::make_shared<CacheEnd>(callback)); }});
    auto object = Napi::Object::New(env);
    object.Set("watch", to_js(env, static_cast<std::int64_t>(watch)));
    object.Set("callback", to_js(env, static_cast<std::int64_t>(callback)));
    object.Set("blockTokens", to_js(env, generator->block_tokens()));
    return object;
  } catch (...) {
    context.drop_callback(env, callback);
    throw;
  }
}

Napi::Value unwatch_cache(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto model = std::dynamic_pointer_cast<ModelHandle>(any_handle_of(info[0], "model"));
  require(model != nullptr, "model is not a model");
  const auto watch = read_integer(info[1], "watch", 0, std::int64_t{1} << 53);
  const auto callback = read_integer(info[2], "callback", 0, std::int64_t{1} << 53);
  Context::of(env).drop_callback(env, static_cast<std::uint64_t>(callback));
  if (!model->closed() && model->generator()) model->generator()->unwatch_cache(static_cast<Generator::WatchId>(watch));
  return env.Undefined();
}

Napi::Value generation_load(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto model = model_of(info[0]);
  if (!model->generator()) return env.Null();
  const GeneratorLoad load = model->generator()->load();
  auto object = Napi::Object::New(env);
  object.Set("running", to_js(env, load.running));
  object.Set("waiting", to_js(env, load.waiting));
  object.Set("usedBlocks", to_js(env, load.used_blocks));
  object.Set("totalBlocks", to_js(env, load.total_blocks));
  object.Set("preempted", to_js(env, load.preempted));
  object.Set("promptTokens", to_js(env, load.prompt_tokens));
  object.Set("cachedTokens", to_js(env, load.cached_tokens));
  object.Set("steps", to_js(env, load.steps));
  return object;
}

Napi::Value cancel_generation(const Napi::CallbackInfo& info) {
  const auto model = std::dynamic_pointer_cast<ModelHandle>(any_handle_of(info[0], "model"));
  require(model != nullptr, "model is not a model");
  const auto id = read_integer(info[1], "request", 0, std::int64_t{1} << 53);
  if (!model->closed() && model->generator()) model->generator()->cancel(static_cast<Generator::RequestId>(id));
  return info.Env().Undefined();
}

}  // namespace engine::addon
