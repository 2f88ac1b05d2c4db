// Calls from compiled XLA programs. One handler serves them all: a number in the program says which call it is. A call is a function of Python's, or
// dense QPs and their reverse derivative, which come to Python only with what the kernel leaves open.
#include <atomic>
#include <cstring>
#include <deque>
#include <random>
#include <shared_mutex>
#include <stdexcept>
#include <unordered_map>

#include "api_dense_qp.hpp"
#include "ffi.hpp"

using namespace layercompiler;

namespace {

using Callback = int32_t (*)(void* const* arguments, void* const* results);  // 0, or -1 after lc_ffi_fail

// Which operand of the kernel is which argument, and which part of the point is which output: what Python lays down when a program is compiled.
struct DenseCall {
  int64_t derivative;  // 0: solve, 1: pull cotangents back
  int64_t count, n, p, m;
  int64_t forms, threads, keep;
  int64_t parameters, place[6], varies[6];  // operand of each parameter, and whether each instance has its own
  int64_t parts, part[16];                  // of each output, or of each cotangent: x, duals of equalities, of inequalities
  int64_t wanted, which[6], own[6];         // parameters whose cotangents are wanted, for each instance or summed
  const double* constants[6];
};

// Points of one call and their factors.
struct Entry {
  explicit Entry(const DenseCall& c)
      : count(c.count), n(c.n), rows(c.p + c.m), numbers(new double[static_cast<size_t>(count * (n + 2 * rows + 3))]),
        status(new int8_t[static_cast<size_t>(count)]), iterations(new int32_t[static_cast<size_t>(count)]) {
    x = numbers.get(), v = x + count * n, y = v + count * rows, norm = y + count * rows, margin = norm + count, reach = margin + count;
  }
  ~Entry() {
    if (factors) lc_dense_factors_free(factors);
  }
  Entry(const Entry&) = delete;
  Entry& operator=(const Entry&) = delete;

  int64_t count, n, rows;
  std::unique_ptr<double[]> numbers;
  std::unique_ptr<int8_t[]> status;
  std::unique_ptr<int32_t[]> iterations;
  double *x, *v, *y, *norm, *margin, *reach;
  void* factors = nullptr;
  uint64_t mark = 0;  // the point of instance i carries mark + i: points travel with their parameters, so marks identify both
  std::atomic<bool> used{false};
};

// Evaluations whose derivatives are to come, by mark. What is not found is solved for again from the point itself.
class Ledger {
 public:
  void put(std::shared_ptr<Entry> entry) {
    std::deque<std::shared_ptr<Entry>> gone;  // freed without the lock
    std::lock_guard<std::mutex> lock(guard_);
    if (entries_.size() >= capacity) gone.push_back(std::move(entries_.front())), entries_.pop_front();
    entries_.push_back(std::move(entry));
  }
  // Those whose derivative was taken give their memory to the next solve, while it is still in the cache.
  void drop_used() {
    std::deque<std::shared_ptr<Entry>> gone, rest;
    std::lock_guard<std::mutex> lock(guard_);
    for (auto& e : entries_) (e->used ? gone : rest).push_back(std::move(e));
    entries_.swap(rest);
  }
  std::shared_ptr<Entry> find(uint64_t mark, int64_t count) {
    std::lock_guard<std::mutex> lock(guard_);
    for (auto& e : entries_)
      if (e->mark == mark && e->count == count) return e;
    return nullptr;
  }
  std::shared_ptr<Entry> take(uint64_t mark, int64_t count) {
    std::lock_guard<std::mutex> lock(guard_);
    for (auto it = entries_.begin(); it != entries_.end(); ++it)
      if ((*it)->mark == mark && (*it)->count == count && it->use_count() == 1) {
        std::shared_ptr<Entry> found = std::move(*it);
        entries_.erase(it);
        return found;
      }
    return nullptr;
  }

 private:
  static constexpr size_t capacity = 4;
  std::mutex guard_;
  std::deque<std::shared_ptr<Entry>> entries_;
};

struct Call {
  Callback python;
  bool dense = false;
  DenseCall plan{};
  void* kernel = nullptr;
  std::shared_ptr<Ledger> ledger;
  std::atomic<int> pause{0};  // calls that go to Python without a trial, because one before was left open
};

struct Calls {
  std::shared_mutex guard;
  std::unordered_map<int64_t, std::shared_ptr<Call>> at;
};
Calls& calls() {
  static Calls* all = new Calls;  // never destroyed: threads of XLA may outlive this library's statics
  return *all;
}

// Numbers that no other process uses either, so that a program or a point of another process is not taken for one of this.
uint64_t random_number() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) ^ device();
}
uint64_t marks(int64_t count) {
  static std::atomic<uint64_t> next{random_number() | 1};
  uint64_t first = next.fetch_add(static_cast<uint64_t>(count));
  return first == 0 || first + static_cast<uint64_t>(count) < first ? next.fetch_add(static_cast<uint64_t>(count)) : first;
}

int64_t insert(std::shared_ptr<Call> call) {
  std::unique_lock<std::shared_mutex> lock(calls().guard);
  for (;;) {
    auto id = static_cast<int64_t>(random_number() >> 1);
    if (calls().at.emplace(id, call).second) return id;
  }
}

struct Operands {
  const double* values[6];
  int64_t strides[6];
};

int64_t width(const DenseCall& c, int64_t operand) {
  const int64_t sizes[6] = {c.n * c.n, c.n, c.p * c.n, c.p, c.m * c.n, c.m};
  return sizes[operand];
}

int64_t size_of(const ffi::Buffer& b) {
  int64_t size = 1;
  for (int64_t i = 0; i < b.rank; i++) size *= b.dims[i];
  return size;
}

Operands operands(const DenseCall& c, const ffi::Frame& f) {
  Operands o;
  for (int k = 0; k < 6; k++) o.values[k] = c.constants[k], o.strides[k] = 0;
  for (int64_t i = 0; i < c.parameters; i++) {
    int64_t k = c.place[i], w = width(c, k);
    const ffi::Buffer& b = *f.arguments.at[i];
    if (size_of(b) != (c.varies[i] ? c.count : 1) * w) throw std::invalid_argument("an argument has another size");
    o.values[k] = static_cast<const double*>(b.data), o.strides[k] = c.varies[i] && c.count > 1 ? w : 0;
  }
  return o;
}

// The columns of (x, y) that an output shows.
struct Part {
  bool primal;
  int64_t first, width;
};
Part part(const DenseCall& c, int64_t kind) {
  if (kind == 0) return {true, 0, c.n};
  return {false, kind == 1 ? 0 : c.p, kind == 1 ? c.p : c.m};
}

void copy(double* to, const double* from, int64_t count) { std::memcpy(to, from, sizeof(double) * static_cast<size_t>(count)); }

bool solve(Call& call, const ffi::Frame& f) {
  const DenseCall& c = call.plan;
  if (f.arguments.count != c.parameters || f.results.count != c.parts + 1) throw std::invalid_argument("another number of arguments or results");
  Operands o = operands(c, f);
  if (call.pause > 0) {
    call.pause--;
    return false;
  }
  call.ledger->drop_used();
  auto entry = std::make_shared<Entry>(c);
  Entry& e = *entry;
  int64_t troubles = 0, rows = e.rows, point = c.n + rows + 1;
  e.factors = lc_dense_solve(call.kernel, c.count, o.values, o.strides, nullptr, nullptr, 0, static_cast<int32_t>(c.forms), e.x, e.v, e.y, e.status.get(),
                             e.iterations.get(), e.norm, e.margin, e.reach, &troubles, static_cast<int32_t>(c.threads));
  if (!e.factors || troubles) {
    call.pause = 8;
    return false;
  }
  for (int64_t k = 0; k < c.parts; k++) {
    Part at = part(c, c.part[k]);
    const ffi::Buffer& b = *f.results.at[k];
    if (size_of(b) != c.count * at.width) throw std::invalid_argument("a result has another size");
    double* out = static_cast<double*>(b.data);
    if (at.primal) copy(out, e.x, c.count * c.n);
    else
      for (int64_t i = 0; i < c.count; i++) copy(out + i * at.width, e.y + i * rows + at.first, at.width);
  }
  const ffi::Buffer& words = *f.results.at[c.parts];
  if (size_of(words) != 2 * c.count * point) throw std::invalid_argument("a result has another size");
  double* z = static_cast<double*>(words.data);
  e.mark = c.keep ? marks(c.count) : 0;
  for (int64_t i = 0; i < c.count; i++, z += point) {
    copy(z, e.x + i * c.n, c.n);
    copy(z + c.n, e.v + i * rows, rows);
    uint64_t mark = c.keep ? e.mark + static_cast<uint64_t>(i) : 0;
    std::memcpy(z + c.n + rows, &mark, sizeof mark);
  }
  if (c.keep) call.ledger->put(std::move(entry));
  return true;
}

std::shared_ptr<Entry> entry_of(const Call& call, const double* z) {
  const DenseCall& c = call.plan;
  int64_t zsize = c.n + c.p + c.m;
  uint64_t first, mark;
  std::memcpy(&first, z + zsize, sizeof first);
  if (!first) return nullptr;
  for (int64_t i = 1; i < c.count; i++) {
    std::memcpy(&mark, z + i * (zsize + 1) + zsize, sizeof mark);
    if (mark != first + static_cast<uint64_t>(i)) return nullptr;
  }
  return call.ledger->find(first, c.count);
}

// The gradient of an operand that the batch shares, from (u, t) at (x, y).
void summed(const DenseCall& c, int64_t operand, const double* u, const double* t, const double* x, const double* y, double* out) {
  int64_t n = c.n, all = c.p + c.m, first = operand >= 4 ? c.p : 0, rows = operand >= 4 ? c.m : c.p;
  std::memset(out, 0, sizeof(double) * static_cast<size_t>(width(c, operand)));
  for (int64_t i = 0; i < c.count; i++) {
    const double *ui = u + i * n, *xi = x + i * n, *ti = t + i * all + first, *yi = y + i * all + first;
    switch (operand) {
      case 0:
        for (int64_t r = 0; r < n; r++) {
          double a = -0.5 * ui[r], b = -0.5 * xi[r], *row = out + r * n;
          for (int64_t j = 0; j < n; j++) row[j] += a * xi[j] + b * ui[j];
        }
        break;
      case 1:
        for (int64_t j = 0; j < n; j++) out[j] -= ui[j];
        break;
      case 2:
      case 4:
        for (int64_t r = 0; r < rows; r++) {
          double a = yi[r], b = ti[r], *row = out + r * n;
          if (a == 0 && b == 0) continue;
          for (int64_t j = 0; j < n; j++) row[j] -= a * ui[j] + b * xi[j];
        }
        break;
      default:
        for (int64_t r = 0; r < rows; r++) out[r] += ti[r];
    }
  }
}

// Large results lie in fresh memory, which large pages bring in at a fraction of the time.
void prefer_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = 4096, least = uintptr_t{4} << 20;
  auto first = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page, last = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / page * page;
  if (last > first && last - first >= least) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

bool pull(const Call& call, const ffi::Frame& f) {
  const DenseCall& c = call.plan;
  if (f.arguments.count != c.parameters + 1 + c.parts || f.results.count != c.wanted) throw std::invalid_argument("another number of arguments or results");
  int64_t n = c.n, rows = c.p + c.m;
  const ffi::Buffer& words = *f.arguments.at[c.parameters];
  if (size_of(words) != 2 * c.count * (n + rows + 1)) throw std::invalid_argument("an argument has another size");
  std::shared_ptr<Entry> entry = entry_of(call, static_cast<const double*>(words.data));
  if (!entry) return false;
  Operands o = operands(c, f);
  std::unique_ptr<double[]> memory(new double[static_cast<size_t>(c.count * (2 * n + 2 * rows + 1))]);
  double *u = memory.get(), *t = u + c.count * n, *r = t + c.count * rows, *h = r + c.count * n, *residual = h + c.count * rows;
  const double* right = r;
  int64_t primal = 0;
  for (int64_t k = 0; k < c.parts; k++) primal += c.part[k] == 0;
  bool dual = primal < c.parts;
  if (primal != 1) std::memset(r, 0, sizeof(double) * static_cast<size_t>(c.count * n));
  if (dual) std::memset(h, 0, sizeof(double) * static_cast<size_t>(c.count * rows));
  for (int64_t k = 0; k < c.parts; k++) {
    Part at = part(c, c.part[k]);
    const ffi::Buffer& b = *f.arguments.at[c.parameters + 1 + k];
    if (size_of(b) != c.count * at.width) throw std::invalid_argument("an argument has another size");
    const double* g = static_cast<const double*>(b.data);
    if (at.primal && primal == 1) right = g;
    else if (at.primal)
      for (int64_t i = 0; i < c.count * n; i++) r[i] += g[i];
    else
      for (int64_t i = 0; i < c.count; i++)
        for (int64_t j = 0; j < at.width; j++) h[i * rows + at.first + j] += g[i * at.width + j];
  }
  double* gradients[6] = {};
  for (int64_t k = 0; k < c.wanted; k++) {
    int64_t operand = c.place[c.which[k]];
    const ffi::Buffer& b = *f.results.at[k];
    if (size_of(b) != (c.own[k] ? c.count : 1) * width(c, operand)) throw std::invalid_argument("a result has another size");
    if (!c.own[k] && c.count > 1) continue;
    gradients[operand] = static_cast<double*>(b.data);
    prefer_large_pages(b.data, 8 * size_of(b));
  }
  if (lc_dense_adjoint(entry->factors, o.values, o.strides, right, dual ? h : nullptr, u, t, residual, entry->x, entry->y, gradients,
                       static_cast<int32_t>(c.threads)))
    return false;
  for (int64_t i = 0; i < c.count; i++)
    if (!(residual[i] <= 1e-9)) return false;  // layercompiler.plan.evaluation.ACCURATE
  for (int64_t k = 0; k < c.wanted; k++) {
    int64_t operand = c.place[c.which[k]];
    if (!gradients[operand]) summed(c, operand, u, t, entry->x, entry->y, static_cast<double*>(f.results.at[k]->data));
  }
  entry->used = true;
  return true;
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
    if (call->dense) done = call->plan.derivative ? pull(*call, *frame) : solve(*call, *frame);
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

// The number of a call: to `python` alone where `plan` is null. `kernel` (of lc_dense_new) and the plan's constants must outlive it.
LC_API int64_t lc_ffi_call_new(void* python, const void* plan, void* kernel, void* ledger) {
  int64_t id = -1;
  guarded([&] {
    auto call = std::make_shared<Call>();
    call->python = reinterpret_cast<Callback>(python);
    if (plan) {
      const auto& c = *static_cast<const DenseCall*>(plan);
      bool fits = c.parameters >= 0 && c.parameters <= 6 && c.parts >= 0 && c.parts <= 16 && c.wanted >= 0 && c.wanted <= 6 && c.count > 0;
      for (int64_t i = 0; fits && i < c.parameters; i++) fits = c.place[i] >= 0 && c.place[i] < 6;
      for (int64_t i = 0; fits && i < c.parts; i++) fits = c.part[i] >= 0 && c.part[i] < 3;
      for (int64_t i = 0; fits && i < c.wanted; i++) fits = c.which[i] >= 0 && c.which[i] < c.parameters;
      if (!fits || !kernel || !ledger) throw std::invalid_argument("a plan is malformed");
      call->dense = true, call->plan = c, call->kernel = kernel, call->ledger = *static_cast<std::shared_ptr<Ledger>*>(ledger);
    }
    id = insert(std::move(call));
  });
  return id;
}

LC_API void lc_ffi_call_free(int64_t id) {
  std::shared_ptr<Call> call;
  std::unique_lock<std::shared_mutex> lock(calls().guard);
  auto found = calls().at.find(id);
  if (found != calls().at.end()) call = std::move(found->second), calls().at.erase(found);
}

// Takes the evaluation with this mark out of a ledger: copies of its numbers, and its factors, which the caller frees. Null where it is not there, or
// another thread reads it. facts: norm, margin, reach.
LC_API void* lc_ledger_take(void* ledger, uint64_t mark, int64_t count, double* x, double* v, double* y, double* facts, int8_t* status, int32_t* iterations) {
  std::shared_ptr<Entry> entry = (*static_cast<std::shared_ptr<Ledger>*>(ledger))->take(mark, count);
  if (!entry) return nullptr;
  copy(x, entry->x, count * entry->n), copy(v, entry->v, count * entry->rows), copy(y, entry->y, count * entry->rows), copy(facts, entry->norm, 3 * count);
  std::memcpy(status, entry->status.get(), static_cast<size_t>(count));
  std::memcpy(iterations, entry->iterations.get(), sizeof(int32_t) * static_cast<size_t>(count));
  return std::exchange(entry->factors, nullptr);
}
