// The C interface that Python loads with ctypes. No exception leaves it: functions return 0, or -1 with the reason in lc_error().
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "pool.hpp"
#include "symbolic.hpp"
#include "targets.hpp"

using namespace layercompiler;

#define LC_API extern "C" __attribute__((visibility("default")))

namespace {

thread_local std::string last_error;

template <class Function> int guarded(Function&& function) {
  try {
    function();
    return 0;
  } catch (const std::bad_alloc&) {
    last_error = "out of memory";
  } catch (const std::exception& e) {
    last_error = e.what();
  } catch (...) {
    last_error = "unknown failure";
  }
  return -1;
}

struct Release {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<double, Release>;

// Blocks of freed factors are kept for the next factor: fresh pages would cost as much as the arithmetic.
class Recycler {
 public:
  Memory take(size_t bytes) {
    {
      std::lock_guard<std::mutex> lock(guard_);
      for (auto it = free_.begin(); it != free_.end(); ++it)
        if (it->second >= bytes && it->second <= 2 * bytes + 4096) {
          Memory found = std::move(it->first);
          sizes_ -= it->second;
          free_.erase(it);
          return found;
        }
    }
    void* fresh = std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (!fresh) throw std::bad_alloc();
    return Memory(static_cast<double*>(fresh));
  }
  void give(Memory memory, size_t bytes) {
    std::lock_guard<std::mutex> lock(guard_);
    if (free_.size() >= 4 || sizes_ + bytes > (size_t{256} << 20)) return;
    sizes_ += bytes;
    free_.emplace_back(std::move(memory), bytes);
  }

 private:
  std::mutex guard_;
  std::vector<std::pair<Memory, size_t>> free_;
  size_t sizes_ = 0;
};

struct Ldl {
  Symbolic symbolic;
  const Target* target;
  Recycler recycler;
};

// A factor keeps its pattern alive: Python may finalise them in any order.
struct Factor {
  std::shared_ptr<Ldl> owner;
  int64_t batch;
  size_t bytes;
  Memory storage;
};

}  // namespace

LC_API int lc_abi() { return 1; }

LC_API const char* lc_error() { return last_error.c_str(); }

LC_API const char* lc_target(const char* name) {
  const Target* t = find_target(name);
  return t ? t->name : nullptr;
}

LC_API void* lc_ldl_new(int64_t n, int64_t count, const int64_t* rows, const int64_t* columns, const int8_t* signs, const char* target) {
  std::shared_ptr<Ldl>* made = nullptr;
  guarded([&] {
    const Target* t = find_target(target);
    if (!t) throw std::invalid_argument("this machine or build has no such instruction set");
    made = new std::shared_ptr<Ldl>(new Ldl{Symbolic(n, count, rows, columns, signs), t, {}});
  });
  return made;
}

LC_API void lc_ldl_free(void* ldl) { delete static_cast<std::shared_ptr<Ldl>*>(ldl); }

LC_API void lc_ldl_facts(const void* ldl, int64_t* facts) {
  const Ldl& l = **static_cast<const std::shared_ptr<Ldl>*>(ldl);
  const Schedule& s = l.symbolic.schedule();
  facts[0] = l.symbolic.factor_entries();
  facts[1] = l.symbolic.flops();
  facts[2] = s.supernodes;
  facts[3] = s.panel;
  facts[4] = l.target->lanes;
  facts[5] = footprint_of(s);
}

LC_API void* lc_ldl_factor(void* ldl, int64_t batch, const double* values, double epsilon, double* pivots, int32_t threads) {
  Factor* made = nullptr;
  guarded([&] {
    const std::shared_ptr<Ldl>& owner = *static_cast<std::shared_ptr<Ldl>*>(ldl);
    Ldl& l = *owner;
    const Schedule& s = l.symbolic.schedule();
    const Target& t = *l.target;
    int64_t footprint = footprint_of(s), lanes = t.lanes, padded = batch <= 2 ? batch : (batch + lanes - 1) / lanes * lanes;
    size_t bytes = sizeof(double) * static_cast<size_t>(footprint) * static_cast<size_t>(padded);
    std::unique_ptr<Factor> factor(new Factor{owner, batch, bytes, l.recycler.take(bytes)});
    FactorJob job{&s, values, s.inputs, epsilon, factor->storage.get(), footprint, pivots};
    size_t need = t.factor_scratch(s);
    parallel(chunk_count(t.lanes, batch), threads, [&](int64_t i) { t.factor(job, chunk_at(t.lanes, batch, i), scratch(need)); });
    made = factor.release();
  });
  return made;
}

LC_API void lc_factor_free(void* factor) {
  std::unique_ptr<Factor> f(static_cast<Factor*>(factor));
  guarded([&] { f->owner->recycler.give(std::move(f->storage), f->bytes); });
}

// rhs and x: (batch, columns, n). A factor of one instance serves any batch.
LC_API int lc_factor_solve(const void* factor, int64_t batch, int64_t columns, const double* rhs, double* x, double* residual, int32_t refine, double tolerance,
                           int32_t threads) {
  return guarded([&] {
    const Factor& f = *static_cast<const Factor*>(factor);
    const Schedule& s = f.owner->symbolic.schedule();
    const Target& t = *f.owner->target;
    bool shared = f.batch == 1 && batch * columns > 1;
    if (!shared && batch != f.batch) throw std::invalid_argument("the batch differs from that of the factor");
    SolveJob job{&s, f.storage.get(), footprint_of(s), shared, columns, rhs, x, residual, refine, tolerance};
    int64_t count = shared ? batch * columns : batch;
    size_t need = t.solve_scratch(s);
    parallel(chunk_count(t.lanes, count), threads, [&](int64_t i) { t.solve(job, chunk_at(t.lanes, count, i), scratch(need)); });
  });
}
