// Affine maps between batches of vectors: out = constant + sum of coefficient * source, by runs of entries. Part of the C interface (api.cpp).
#include <memory>

#include "maps.hpp"

using namespace layercompiler;

namespace {

LC_WIDE void assign(double* out, const double* from, int64_t length, double coefficient) {
  for (int64_t k = 0; k < length; k++) out[k] = coefficient * from[k];
}

LC_WIDE void add(double* out, const double* from, int64_t length, double coefficient) {
  for (int64_t k = 0; k < length; k++) out[k] += coefficient * from[k];
}

}  // namespace

void Gather::apply(size_t which, int64_t instance, double* out, const double* const* source, const int64_t* stride) const {
  const Part& part = parts[which];
  if (!part.covered) std::memcpy(out, part.constant.data(), sizeof(double) * static_cast<size_t>(part.size));
  for (const Run& r : part.runs) {
    double* to = out + r.row;
    if (!source[r.source]) {
      if (r.fresh && part.covered) std::fill(to, to + r.length, 0.0);
      continue;
    }
    const double* from = source[r.source] + stride[r.source] * instance + r.column;
    if (r.length < 4 || r.step != 1) {
      if (r.fresh)
        for (int64_t k = 0; k < r.length; k++) to[k] = r.coefficient * from[k * r.step];
      else
        for (int64_t k = 0; k < r.length; k++) to[k] += r.coefficient * from[k * r.step];
    } else if (r.fresh && r.coefficient == 1.0) {
      std::memcpy(to, from, sizeof(double) * static_cast<size_t>(r.length));
    } else if (r.fresh) {
      assign(to, from, r.length, r.coefficient);
    } else {
      add(to, from, r.length, r.coefficient);
    }
  }
}

// Entries of all parts in a row, `counts` of them per part. Constants of all parts in a row.
LC_API void* lc_gather_new(int64_t sources, const int64_t* source_sizes, int64_t parts, const int64_t* part_sizes, const double* constants,
                           const int64_t* counts, const int64_t* rows, const int64_t* source, const int64_t* columns, const double* coefficients) {
  Gather* made = nullptr;
  guarded([&] {
    std::unique_ptr<Gather> g(new Gather);
    require(sources >= 0 && parts >= 0, "wrong number of sources or parts");
    g->sources.assign(source_sizes, source_sizes + sources);
    for (int64_t s : g->sources) require(s >= 0, "wrong size of a source");
    for (int64_t p = 0; p < parts; p++) {
      Gather::Part part;
      part.size = part_sizes[p], part.entries = counts[p];
      require(part.size >= 0, "wrong size of a part");
      checked_indices(rows, part.entries, part.size, "the rows");
      checked_indices(source, part.entries, sources, "the sources");
      part.constant.assign(constants, constants + part.size);
      std::vector<char> written(static_cast<size_t>(part.size));
      for (int64_t k = 0; k < part.size; k++) written[static_cast<size_t>(k)] = part.constant[static_cast<size_t>(k)] != 0.0;
      int64_t fresh = 0;
      for (int64_t k = 0; k < part.entries; k++) {
        require(columns[k] >= 0 && columns[k] < g->sources[static_cast<size_t>(source[k])], "a column is out of range");
        bool first = !written[static_cast<size_t>(rows[k])];
        written[static_cast<size_t>(rows[k])] = 1;
        fresh += first;
        Gather::Run* last = part.runs.empty() ? nullptr : &part.runs.back();
        if (last && last->source == source[k] && last->coefficient == coefficients[k] && last->fresh == first && rows[k] == last->row + last->length) {
          int64_t step = columns[k] - (last->column + (last->length - 1) * last->step);
          if (last->length == 1) last->step = step;
          if (step == last->step) {
            last->length++;
            continue;
          }
        }
        part.runs.push_back({rows[k], columns[k], 1, 1, coefficients[k], static_cast<int32_t>(source[k]), first});
      }
      part.covered = fresh == part.size;
      constants += part.size, rows += part.entries, source += part.entries, columns += part.entries, coefficients += part.entries;
      g->parts.push_back(std::move(part));
    }
    made = g.release();
  });
  return made;
}

LC_API void lc_gather_free(void* gather) { delete static_cast<Gather*>(gather); }

// out: one array per part, (batch, size), or (1, size) where `shared`; null parts are left out. Null sources count as zero.
LC_API int lc_gather_apply(const void* gather, int64_t batch, const double* const* source, const int64_t* strides, double* const* out, const int8_t* shared,
                           int32_t threads) {
  return guarded([&] {
    const Gather& g = *static_cast<const Gather*>(gather);
    for (size_t p = 0; p < g.parts.size(); p++) {
      const Gather::Part& part = g.parts[p];
      if (!out[p]) continue;
      in_pieces(shared[p] ? std::min<int64_t>(batch, 1) : batch, part.size + part.entries, threads, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) g.apply(p, i, out[p] + part.size * i, source, strides);
      });
    }
  });
}
