// What the files about parameters and data share: checked index arrays, runs of entries, and batches in pieces.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "interface.hpp"
#include "pool.hpp"

// The loops below are plain C++; where the compiler can, it makes a copy of each for wider vectors and chooses when the library loads. Sums
// keep their order and nothing is contracted, so every copy gives the same bits.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define LC_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define LC_WIDE
#endif

namespace layercompiler {

inline void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

inline std::vector<int64_t> checked_indices(const int64_t* from, int64_t count, int64_t limit, const char* what) {
  require(count >= 0 && count <= (int64_t{1} << 31), "wrong number of entries");
  std::vector<int64_t> out(from, from + count);
  for (int64_t k : out)
    if (k < 0 || k >= limit) throw std::invalid_argument(std::string("an index of ") + what + " is out of range");
  return out;
}

// function(first, last) on pieces of a batch; small work stays on the caller's thread.
template <class Function> void in_pieces(int64_t batch, int64_t work, int threads, Function&& function) {
  if (threads < 2 || batch < 2 || batch * work < 100'000) return function(int64_t{0}, batch);
  int64_t pieces = std::min<int64_t>(batch, 4 * int64_t{threads});
  parallel(pieces, threads, [&](int64_t i) { function(batch * i / pieces, batch * (i + 1) / pieces); });
}

// Operands with stride 0 are shared by the batch.
struct Rows {
  const double* data;
  int64_t stride;
  const double* operator[](int64_t instance) const { return data + stride * instance; }
};

}  // namespace layercompiler
