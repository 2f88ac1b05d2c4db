// Gradients of the data of a cone program, formed entry by entry and pulled back to the parameters at once. Part of the C interface (api.cpp).
//
// With (x, y) the point and (u, t) the adjoint solution: dP = -(u x' + x u') / 2, dq = -u, dd = 0, dA = -(y u' + t x'), db = t, and
// where the optimal value has a cotangent g, g x x' / 2, g x and g are added to the first three.
#include <memory>

#include "maps.hpp"

using namespace layercompiler;

namespace {

enum Kind : int32_t { kind_p, kind_q, kind_d, kind_a, kind_b };

// out[k] (+)= a u[k] + b x[k]
LC_WIDE void pair(double* out, const double* u, const double* x, int64_t length, double a, double b, bool put) {
  if (put)
    for (int64_t k = 0; k < length; k++) out[k] = a * u[k] + b * x[k];
  else
    for (int64_t k = 0; k < length; k++) out[k] += a * u[k] + b * x[k];
}

LC_WIDE void take(double* out, const double* t, int64_t length, double a, bool put) {
  if (put)
    for (int64_t k = 0; k < length; k++) out[k] = a * t[k];
  else
    for (int64_t k = 0; k < length; k++) out[k] += a * t[k];
}

// Rows of the outer products c (a u' + b x').
LC_WIDE void outer(double* __restrict out, const double* __restrict a, const double* __restrict b, const double* __restrict u, const double* __restrict x,
                   int64_t rows, int64_t length, double c) {
  for (int64_t i = 0; i < rows; i++, out += length) {
    const double f = c * a[i], g = c * b[i];
    for (int64_t k = 0; k < length; k++) out[k] = f * u[k] + g * x[k];
  }
}

double entry(const Pullback::Run& r, const Pullback::Point& p, int64_t k) {
  int64_t i = r.i + k * r.di, j = r.j + k * r.dj;
  switch (r.kind) {
    case kind_p: return p.value * (p.x[i] * p.x[j]) - (p.u[i] * p.x[j] + p.x[i] * p.u[j]);
    case kind_q: return p.value * p.x[i] - p.u[i];
    case kind_d: return p.value;
    case kind_a: return -(p.y[i] * p.u[j] + p.t[i] * p.x[j]);
    default: return p.t[i];
  }
}

}  // namespace

// Adds to `out` what is not fresh, and everything where the batch shares the channel.
void Pullback::pull(size_t which, const Point& p, double* out, bool summed) const {
  const Channel& channel = channels[which];
  if (!summed && !channel.covered) std::fill(out, out + channel.size, 0.0);
  for (const Run& r : channel.runs) {
    double* to = out + r.column;
    const bool put = r.fresh && !summed, down = r.di == 1 && r.dj == 0, along = r.di == 0 && r.dj == 1;
    if (r.kind == kind_a && r.length >= 4 && (down || along)) {  // one index stands still: a combination of two vectors
      const double *a = along ? p.y + r.i : p.u + r.j, *b = along ? p.t + r.i : p.x + r.j, *u = along ? p.u + r.j : p.y + r.i, *x = along ? p.x + r.j : p.t + r.i;
      if (put) outer(to, a, b, u, x, r.rows, r.length, -r.coefficient);
      else
        for (int64_t i = 0; i < r.rows; i++) pair(to + r.length * i, u, x, r.length, -r.coefficient * a[i], -r.coefficient * b[i], false);
    } else if (r.kind == kind_q && r.length >= 4 && r.di == 1) {
      pair(to, p.u + r.i, p.x + r.i, r.length, -r.coefficient, r.coefficient * p.value, put);
    } else if (r.kind == kind_b && r.length >= 4 && r.di == 1) {
      take(to, p.t + r.i, r.length, r.coefficient, put);
    } else if (put) {
      for (int64_t k = 0; k < r.length; k++) to[k] = r.coefficient * entry(r, p, k);
    } else {
      for (int64_t k = 0; k < r.length; k++) to[k] += r.coefficient * entry(r, p, k);
    }
  }
}

// Runs of one row after the other are one.
static void join_rows(std::vector<Pullback::Run>& runs) {
  size_t kept = 0;
  for (size_t k = 1; k < runs.size(); k++) {
    Pullback::Run &last = runs[kept], &next = runs[k];
    const bool alike = next.kind == kind_a && last.kind == kind_a && next.length >= 4 && next.length == last.length && next.di == last.di && next.dj == last.dj &&
                       last.di + last.dj == 1 && (last.di == 0 || last.dj == 0) && next.coefficient == last.coefficient && next.fresh == last.fresh;
    if (alike && next.column == last.column + last.rows * last.length && next.i == last.i + last.rows * last.dj && next.j == last.j + last.rows * last.di)
      last.rows++;
    else
      runs[++kept] = next;
  }
  if (!runs.empty()) runs.resize(kept + 1);
}

// Entries of all channels in a row, `counts` of them per channel: which data entry (kind, i, j) the channel's `column` enters, and how.
LC_API void* lc_pullback_new(int64_t n, int64_t m, int64_t channels, const int64_t* sizes, const int64_t* counts, const int64_t* kinds, const int64_t* is,
                             const int64_t* js, const int64_t* columns, const double* coefficients) {
  Pullback* made = nullptr;
  guarded([&] {
    std::unique_ptr<Pullback> b(new Pullback{n, m, {}});
    require(n >= 0 && m >= 0 && channels >= 0, "wrong sizes");
    for (int64_t c = 0; c < channels; c++) {
      Pullback::Channel channel{sizes[c], counts[c], {}, false};
      require(channel.size >= 0, "wrong size of a channel");
      checked_indices(columns, channel.entries, channel.size, "the columns");
      std::vector<char> written(static_cast<size_t>(channel.size));
      int64_t fresh = 0;
      for (int64_t k = 0; k < channel.entries; k++) {
        int64_t kind = kinds[k], i = is[k], j = js[k];
        require(kind >= kind_p && kind <= kind_b, "unknown kind of data");
        int64_t rows = kind == kind_a || kind == kind_b ? m : n;
        require(kind == kind_d || (i >= 0 && i < rows), "a row is out of range");
        require((kind != kind_a && kind != kind_p) || (j >= 0 && j < n), "a column is out of range");
        bool first = !written[static_cast<size_t>(columns[k])];
        written[static_cast<size_t>(columns[k])] = 1;
        fresh += first;
        Pullback::Run* last = channel.runs.empty() ? nullptr : &channel.runs.back();
        if (last && last->kind == kind && last->coefficient == coefficients[k] && last->fresh == first && columns[k] == last->column + last->length) {
          int64_t di = i - (last->i + (last->length - 1) * last->di), dj = j - (last->j + (last->length - 1) * last->dj);
          if (last->length == 1) last->di = di, last->dj = dj;
          if (di == last->di && dj == last->dj) {
            last->length++;
            continue;
          }
        }
        channel.runs.push_back({columns[k], 1, i, j, 0, 0, coefficients[k], static_cast<int32_t>(kind), first});
      }
      join_rows(channel.runs);
      channel.covered = fresh == channel.size;
      kinds += channel.entries, is += channel.entries, js += channel.entries, columns += channel.entries, coefficients += channel.entries;
      b->channels.push_back(std::move(channel));
    }
    made = b.release();
  });
  return made;
}

LC_API void lc_pullback_free(void* pullback) { delete static_cast<Pullback*>(pullback); }

// out: one array per channel, (batch, size), or (1, size) where `shared`: the sum over the batch. `value` (batch) and `skip` (batch) may be null.
LC_API int lc_pullback_apply(const void* pullback, int64_t batch, const double* x, const double* y, const double* u, const double* t, const double* value,
                             const int8_t* skip, double* const* out, const int8_t* shared, int32_t threads) {
  return guarded([&] {
    const Pullback& b = *static_cast<const Pullback*>(pullback);
    auto point = [&](int64_t i) { return Pullback::Point{x + b.n * i, y + b.m * i, u + b.n * i, t + b.m * i, value ? value[i] : 0.0}; };
    for (size_t c = 0; c < b.channels.size(); c++) {
      const Pullback::Channel& channel = b.channels[c];
      if (shared[c] && batch != 1) {
        std::fill(out[c], out[c] + channel.size, 0.0);
        for (int64_t i = 0; i < batch; i++)
          if (!skip || !skip[i]) b.pull(c, point(i), out[c], true);
        continue;
      }
      in_pieces(batch, channel.size + channel.entries, threads, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
          double* to = out[c] + channel.size * i;
          if (skip && skip[i])
            std::fill(to, to + channel.size, 0.0);
          else
            b.pull(c, point(i), to, false);
        }
      });
    }
  });
}
