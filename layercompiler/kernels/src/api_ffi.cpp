// Calls from compiled XLA programs. One handler serves them all: a number in the program says which call it is. A call is a function of Python's, or
// solves and reverse derivatives (ffi_dense.cpp, ffi_express.cpp), which come to Python only with what the kernels leave open.
#include <random>
#include <shared_mutex>
#include <unordered_map>

#include "ffi_calls.hpp"

using namespace layercompiler;

namespace {

using Callback = int32_t (*)(void* const* arguments, void* const* results);  // 0, or -1 after lc_ffi_fail

struct Call {
  Callback python;
  std::unique_ptr<Work> work;
};

struct Calls {
  std::shared_mutex guard;
  std::unordered_map<int64_t, std::shared_ptr<Call>> at;
};
Calls& calls() {
  static Calls* all = new Calls;  // never destroyed: threads of XLA may outlive this library's statics
  return *all;
}

// A program of another process is not taken for one of this.
uint64_t random_number() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) ^ device();
}

ffi::Error* error(const ffi::Api* api, int32_t code, const std::string& message) {
  ffi::ErrorText text{sizeof(ffi::ErrorText), nullptr, message.c_str(), code};
  return api->error(&text);
}

bool known(const ffi::Api& api) {
  return api.size >= sizeof(ffi::Api) && api.version.major == 0 && api.version.minor >= 1 && api.version.minor <= 3;
}

thread_local std::string failure;

}  // namespace

int64_t layercompiler::ffi_call(void* python, std::unique_ptr<Work> work) {
  auto call = std::make_shared<Call>();
  call->python = reinterpret_cast<Callback>(python), call->work = std::move(work);
  std::unique_lock<std::shared_mutex> lock(calls().guard);
  for (;;) {
    auto id = static_cast<int64_t>(random_number() >> 1);
    if (calls().at.emplace(id, call).second) return id;
  }
}

uint64_t layercompiler::ffi_marks(int64_t count) {
  static std::atomic<uint64_t> next{random_number() | 1};
  uint64_t first = next.fetch_add(static_cast<uint64_t>(count));
  return first == 0 || first + static_cast<uint64_t>(count) < first ? next.fetch_add(static_cast<uint64_t>(count)) : first;
}

void layercompiler::ffi_point(double*& to, const double* first, int64_t n, const double* second, int64_t m, uint64_t mark) {
  std::copy(first, first + n, to), std::copy(second, second + m, to + n);
  std::memcpy(to + n + m, &mark, sizeof mark);
  to += n + m + 1;
}

uint64_t layercompiler::ffi_mark(const double* points, int64_t count, int64_t size) {
  uint64_t first, mark;
  std::memcpy(&first, points + size, sizeof first);
  for (int64_t i = 1; first && i < count; i++) {
    std::memcpy(&mark, points + i * (size + 1) + size, sizeof mark);
    if (mark != first + static_cast<uint64_t>(i)) return 0;
  }
  return first;
}

void layercompiler::prefer_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = 4096, least = uintptr_t{4} << 20;
  auto first = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page, last = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / page * page;
  if (last > first && last - first >= least) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

LC_API ffi::Error* lc_ffi_handler(ffi::Frame* frame) {
  const ffi::Api* api = frame->api;
  if (frame->extension && frame->extension->kind == ffi::metadata_request) {
    auto* request = reinterpret_cast<ffi::MetadataRequest*>(frame->extension);
    ffi::Version mine{sizeof(ffi::Version), nullptr, 0, 1};  // older versions do not say which they are, and refuse what they are not
    if (api) mine.major = api->version.major, mine.minor = api->version.minor;
    bool small = request->metadata->size < offsetof(ffi::Metadata, traits) + sizeof(uint32_t) || frame->size < sizeof(ffi::Frame);
    if (small || (api && !known(*api))) mine.major = mine.minor = -1;  // which every version refuses
    request->metadata->version = mine;
    request->metadata->traits = 0;
    return nullptr;
  }
  if (frame->stage != ffi::execution) return nullptr;
  if (!known(*api)) return error(api, ffi::internal, "layercompiler: another version of XLA's interface");
  if (frame->attributes.count != 1 || frame->attributes.kinds[0] != ffi::scalar_kind || frame->attributes.at[0]->type != ffi::signed_64)
    return error(api, ffi::invalid_argument, "layercompiler: a call carries one number");
  int64_t id;
  std::memcpy(&id, frame->attributes.at[0]->value, sizeof id);
  std::shared_ptr<Call> call;
  {
    std::shared_lock<std::shared_mutex> lock(calls().guard);
    auto found = calls().at.find(id);
    if (found != calls().at.end()) call = found->second;
  }
  if (!call) return error(api, ffi::not_found, "layercompiler: the program was compiled in another process, or its layer is gone");
  bool done = false;
  int wrong = guarded([&] {
    for (const ffi::Buffers* side : {&frame->arguments, &frame->results})
      for (int64_t i = 0; i < side->count; i++)
        if (side->kinds[i] != ffi::buffer_kind) throw std::invalid_argument("an argument or result is no buffer");
    if (call->work) done = call->work->run(*frame);
    if (done) return;
    std::vector<void*> arguments, results;
    for (int64_t i = 0; i < frame->arguments.count; i++) arguments.push_back(frame->arguments.at[i]->data);
    for (int64_t i = 0; i < frame->results.count; i++) results.push_back(frame->results.at[i]->data);
    failure = "the call failed";
    done = call->python(arguments.data(), results.data()) == 0;
  });
  if (wrong) return error(api, ffi::internal, "layercompiler: " + last_error);
  return done ? nullptr : error(api, ffi::internal, failure);
}

// What a Python function says of its failure, on the thread that called it.
LC_API void lc_ffi_fail(const char* text) {
  guarded([&] { failure = text; });
}

LC_API void* lc_ledger_new() { return new (std::nothrow) std::shared_ptr<Ledger>(std::make_shared<Ledger>()); }
LC_API void lc_ledger_free(void* ledger) { delete static_cast<std::shared_ptr<Ledger>*>(ledger); }

// The number of a call to `python` alone.
LC_API int64_t lc_ffi_call_new(void* python) {
  int64_t id = -1;
  guarded([&] { id = ffi_call(python, nullptr); });
  return id;
}

LC_API void lc_ffi_call_free(int64_t id) {
  std::shared_ptr<Call> call;
  std::unique_lock<std::shared_mutex> lock(calls().guard);
  auto found = calls().at.find(id);
  if (found != calls().at.end()) call = std::move(found->second), calls().at.erase(found);
}
