// What the two directions of a whole call share: the plan, a solved batch, memory, and threads. See express.cpp.
#pragma once
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>

#include "maps.hpp"

namespace layercompiler {

enum Part { part_p, part_q, part_d, part_a, part_b, part_entries, part_beta, part_linear, part_diagonal };

// As Python lays the fields out; handles are kept alive there.
struct Plan {
  int64_t gather, substitution, scaling, conic, newton, dense, picks, spreads, pullback, n, m, full_n, full_m, zero, split, forms, iterations, steps;
};

struct Settings {
  double tolerance, exact, target, epsilon, accurate;
};

// Where a source holds numbers of the data as they are.
struct Window {
  int32_t source = -1;
  int64_t column = 0;
};

// A part of the data that is not gathered, because sources hold it: its numbers before and from `cut` on.
struct View {
  bool whole = false;
  int64_t cut = 0;
  Window window[2];
};

struct Express {
  const Gather *gather, *picks, *spreads;
  const Substitution* substitution;
  const Equilibration* scaling;
  const Pullback* pullback;
  Plan plan;
  Settings settings;
  std::vector<int8_t> signs;
  std::vector<std::vector<size_t>> reads;  // the sources of each part
  std::vector<View> views;                 // of each part
  Recycler recycler;
};

// Arrays whose places are known once all are counted.
class Layout {
 public:
  template <class T> void add(T*& place, int64_t count) {
    places_.push_back({&place, size_});
    size_ += (sizeof(T) * static_cast<size_t>(count) + 63) / 64 * 64;
  }
  size_t bytes() const { return std::max<size_t>(size_, 64); }
  void lay(double* memory) const {
    for (auto& p : places_) {
      void* at = reinterpret_cast<char*>(memory) + p.second;
      std::memcpy(p.first, &at, sizeof at);
    }
  }

 private:
  std::vector<std::pair<void*, size_t>> places_;
  size_t size_ = 0;
};

// Memory that goes back to where it came from.
class Room {
 public:
  Room() = default;
  Room(Room&& other) noexcept : from_(other.from_), bytes_(other.bytes_), memory_(std::move(other.memory_)) {}
  Room(Recycler& from, const Layout& layout) : from_(&from), bytes_(layout.bytes()), memory_(from.take(bytes_)) { layout.lay(memory_.get()); }
  Room& operator=(Room&& other) noexcept {
    std::swap(from_, other.from_), std::swap(bytes_, other.bytes_), std::swap(memory_, other.memory_);
    return *this;
  }
  ~Room() {
    if (memory_) from_->give(std::move(memory_), bytes_);
  }

 private:
  Recycler* from_ = nullptr;
  size_t bytes_ = 0;
  Memory memory_;
};

struct Many {  // rows of a batch, or one that it shares
  double* data = nullptr;
  int64_t stride = 0;
  double* operator[](int64_t instance) const { return data + stride * instance; }
};

// Rows that derivatives read: those kept, or a source's, which is handed in again.
struct Kept {
  Many rows;
  Window window;
  Many at(const double* const* sources) const {
    return window.source < 0 ? rows : Many{const_cast<double*>(sources[window.source]) + window.column, rows.stride};
  }
};

// A solved batch and what its derivatives need.
struct Passage {
  std::shared_ptr<Express> owner;
  int64_t batch = 0;
  Room room, scaled;
  Kept entries, diagonal, values[6];
  Many w;
  double *x = nullptr, *v = nullptr, *full_x = nullptr, *full_y = nullptr;
  double *scale_x = nullptr, *scale_y = nullptr, *scale_rx = nullptr, *scale_ry = nullptr;
  std::vector<char> own;  // by source, whether each instance has its own
  void *linear = nullptr, *factors = nullptr;

  explicit Passage(std::shared_ptr<Express> owner) : owner(std::move(owner)) {}
  ~Passage();
};

// Seconds of each part, where they are asked for.
struct Watch {
  double* spent;
  std::chrono::steady_clock::time_point last = spent ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point();

  void end(int part) {
    if (!spent) return;
    auto now = std::chrono::steady_clock::now();
    spent[part] += std::chrono::duration<double>(now - last).count();
    last = now;
  }
};

struct Failed {};  // a function of the C interface has failed and said why

inline void check(bool good) {
  if (!good) throw Failed();
}

template <class Function> int guarded_calls(Function&& function) {
  int failed = 0;
  int made = guarded([&] {
    try {
      function();
    } catch (const Failed&) {
      failed = -1;
    }
  });
  return made ? made : failed;
}

// The batch in pieces of a few instances, so that a thread finds what it has just written.
template <class Function> void by_instances(int64_t batch, int64_t work, int threads, Function&& function) {
  if (threads < 2 || batch < 2 || batch * work < 20'000) return function(int64_t{0}, batch);
  int64_t pieces = std::min<int64_t>(batch, 4 * int64_t{threads});
  parallel(pieces, threads, [&](int64_t i) { function(batch * i / pieces, batch * (i + 1) / pieces); });
}

// The other direction: see lc_passage_adjoint; `own`: by source, whether each instance has a gradient of its own.
int passage_adjoint(const Passage& p, const int64_t* addresses, const std::vector<char>& own, int32_t threads, double* seconds);

bool finite(const double* v, int64_t count);
void multiply(double* out, const double* a, const double* b, int64_t count);

}  // namespace layercompiler
