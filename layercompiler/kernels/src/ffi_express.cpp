// Whole calls of layers and their reverse derivative, as compiled XLA programs make them: see api_ffi.cpp and express.cpp.
#include "express.hpp"
#include "ffi_calls.hpp"

using namespace layercompiler;

LC_API void* lc_express_forward(void*, int64_t, const int64_t*, int32_t, int32_t*, double*);
LC_API void lc_passage_free(void*);

namespace {

// A solved batch.
struct Kept : Entry {
  Kept(int64_t count, void* passage) : Entry(count), passage(static_cast<Passage*>(passage)) {}

  std::unique_ptr<Passage> passage;
};

constexpr int32_t hard = 3;  // from this refusal on, the batch was tried

struct Whole : Trial {
  std::shared_ptr<Express> express;
  bool derivative, keep;
  int64_t count;
  int32_t threads;
  std::vector<int64_t> sources, outputs;  // their sizes
  std::vector<char> varies;               // by source, whether each instance has its own
  std::vector<size_t> given, wanted;      // outputs with a cotangent; sources whose gradient is wanted
  std::vector<char> own;                  // by source, whether each instance has a gradient of its own

  bool run(const ffi::Frame& f) override { return derivative ? pull(f) : solve(f); }

 private:
  int64_t points() const { return express->plan.n + express->plan.m; }
  int64_t lie(const ffi::Buffers& side, size_t k, int64_t size) const { return reinterpret_cast<int64_t>(numbers(side, static_cast<int64_t>(k), size)); }
  int64_t source(const ffi::Frame& f, size_t k) const { return lie(f.arguments, k, (varies[k] ? count : 1) * sources[k]); }

  bool solve(const ffi::Frame& f) {
    const size_t all = sources.size();
    expect(f, static_cast<int64_t>(all), static_cast<int64_t>(outputs.size()) + 1);
    std::vector<int64_t> addresses;
    for (size_t k = 0; k < all; k++) addresses.push_back(source(f, k));
    for (size_t k = 0; k < all; k++) addresses.push_back(varies[k] && count > 1 ? sources[k] : 0);
    for (size_t k = 0; k < outputs.size(); k++) addresses.push_back(lie(f.results, k, count * outputs[k]));
    double* z = numbers(f.results, static_cast<int64_t>(outputs.size()), 2 * count * (points() + 1));
    if (paused()) return false;
    ledger->drop_used();
    int32_t refusal = 0;
    void* made = lc_express_forward(&express, count, addresses.data(), threads, &refusal, nullptr);
    if (!made) {
      if (!refusal) throw std::runtime_error(last_error);
      if (refusal >= hard) pause = rest;
      return false;
    }
    auto kept = std::make_shared<Kept>(count, made);
    const Passage& p = *kept->passage;
    kept->mark = keep ? ffi_marks(count) : 0;
    for (int64_t i = 0, n = express->plan.n, m = express->plan.m; i < count; i++)
      ffi_point(z, p.x + n * i, n, p.v + m * i, m, keep ? kept->mark + static_cast<uint64_t>(i) : 0);
    if (keep) ledger->put(std::move(kept));
    return true;
  }

  bool pull(const ffi::Frame& f) const {
    const size_t all = sources.size();
    expect(f, static_cast<int64_t>(all + 1 + given.size()), static_cast<int64_t>(wanted.size()));
    const double* z = numbers(f.arguments, static_cast<int64_t>(all), 2 * count * (points() + 1));
    std::shared_ptr<Entry> entry = ledger->find(ffi_mark(z, count, points()), count);
    const auto* kept = dynamic_cast<const Kept*>(entry.get());
    if (!kept || (count > 1 && kept->passage->own != varies)) return false;
    std::vector<int64_t> addresses(outputs.size() + all);
    for (size_t k = 0; k < given.size(); k++) addresses[given[k]] = lie(f.arguments, all + 1 + k, count * outputs[given[k]]);
    for (size_t k = 0; k < wanted.size(); k++) {
      int64_t size = (own[wanted[k]] ? count : 1) * sources[wanted[k]];
      addresses[outputs.size() + wanted[k]] = lie(f.results, k, size);
      prefer_large_pages(numbers(f.results, static_cast<int64_t>(k), size), 8 * size);
    }
    for (size_t k = 0; k < all; k++) addresses.push_back(source(f, k));
    int failed = passage_adjoint(*kept->passage, addresses.data(), own, threads, nullptr);
    if (failed < 0) throw std::runtime_error(last_error);
    entry->used = !failed;
    return !failed;
  }
};

}  // namespace

// The number of a whole call, or of its reverse derivative, and of `python` with what that leaves open. plan: whether it is the derivative, instances,
// threads, whether a solve is remembered, the counts of sources, outputs, cotangents and gradients; the sizes of the sources, which of them each instance has
// its own of, the sizes of the outputs, which output each cotangent is of, which source each gradient is of, and whether each instance has its own. The
// handles that `express` was made of must outlive it.
LC_API int64_t lc_ffi_express_new(void* python, const int64_t* plan, void* express, void* ledger) {
  int64_t id = -1;
  guarded([&] {
    std::unique_ptr<Whole> work(new Whole);
    Whole& w = *work;
    w.express = *static_cast<std::shared_ptr<Express>*>(express), w.ledger = *static_cast<std::shared_ptr<Ledger>*>(ledger);
    w.derivative = plan[0] != 0, w.count = plan[1], w.threads = static_cast<int32_t>(plan[2]), w.keep = plan[3] != 0;
    const int64_t *counts = plan + 4, *next = plan + 8;
    for (int k = 0; k < 4; k++) require(counts[k] >= 0, "a plan is malformed");
    for (int64_t k = 0; k < counts[0]; k++) w.sources.push_back(*next++);
    for (int64_t k = 0; k < counts[0]; k++) w.varies.push_back(*next++ != 0);
    for (int64_t k = 0; k < counts[1]; k++) w.outputs.push_back(*next++);
    for (int64_t k = 0; k < counts[2]; k++) w.given.push_back(static_cast<size_t>(*next++));
    for (int64_t k = 0; k < counts[3]; k++) w.wanted.push_back(static_cast<size_t>(*next++));
    w.own.resize(w.sources.size());
    for (size_t source : w.wanted) {
      require(source < w.sources.size(), "a plan is malformed");
      w.own[source] = *next++ != 0;
    }
    for (size_t output : w.given) require(output < w.outputs.size(), "a plan is malformed");
    require(w.count > 0 && w.sources == w.express->gather->sources && w.outputs == w.express->spreads->sources, "a plan is malformed");
    id = ffi_call(python, std::move(work));
  });
  return id;
}
