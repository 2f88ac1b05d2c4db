#include "residual.hpp"

#include <algorithm>
#include <stdexcept>

namespace layercompiler {

ResidualProgram::ResidualProgram(const ConicPattern& pattern, const Target* target) : target_(target) {
  ConicProgram checked(pattern, target, false);
  const Program& c = checked.view();
  const int32_t n = c.n, m = c.m;
  p_row_.assign(c.p_row, c.p_row + c.p_entries);
  p_col_.assign(c.p_col, c.p_col + c.p_entries);
  p_from_.assign(c.p_from, c.p_from + c.p_entries);
  a_row_.assign(c.a_row, c.a_row + c.a_entries);
  a_col_.assign(c.a_col, c.a_col + c.a_entries);
  a_from_.assign(c.a_from, c.a_from + c.a_entries);

  // T and N: entries (row, unknown) and (unknown, unknown) by cone, see shared.hpp.
  std::vector<int32_t> t_unknown;
  std::vector<std::pair<int32_t, int32_t>> n_entry;
  std::vector<int8_t> signs(n, 1), late(n, 0);
  auto unknown = [&](int8_t sign, bool is_late) {
    signs.push_back(sign);
    late.push_back(is_late);
    return static_cast<int32_t>(signs.size()) - 1;
  };
  auto t_entry = [&](int32_t row, int32_t column) {
    t_row_.push_back(row);
    t_unknown.push_back(column);
  };
  auto begin = [&](int32_t kind, int32_t row, int32_t dim, double alpha) {
    cone_.push_back({kind, row, dim, alpha, static_cast<int64_t>(t_row_.size()), static_cast<int64_t>(n_entry.size())});
  };
  if (c.zero) begin(0, 0, c.zero, 0.0);
  for (int32_t r = 0; r < c.zero; r++) t_entry(r, unknown(-1, false));
  if (c.nonnegative) begin(1, c.zero, c.nonnegative, 0.0);
  for (int32_t r = c.zero; r < c.zero + c.nonnegative; r++) {
    int32_t u = unknown(-1, false);
    t_entry(r, u);
    n_entry.push_back({u, u});
  }
  for (int32_t t = 0; t < c.cones; t++) {
    const Cone& k = c.cone[t];
    begin(k.kind, k.row, k.dim, k.alpha);
    int32_t first = static_cast<int32_t>(signs.size());
    if (k.kind == second_order) {
      const int32_t z = k.dim - 1, a = first + z, e = first + z + 1;
      for (int32_t i = 0; i < k.dim; i++) unknown(-1, false);
      unknown(1, true);
      t_entry(k.row, a);
      for (int32_t i = 0; i < z; i++) t_entry(k.row + 1 + i, first + i);
      for (int32_t i = 0; i < z; i++) t_entry(k.row + 1 + i, a);
      for (int32_t i = 0; i < z; i++) n_entry.push_back({first + i, first + i});
      n_entry.push_back({a, a});
      for (int32_t i = 0; i < z; i++) n_entry.push_back({first + i, e});
      n_entry.push_back({e, e});
    } else if (k.kind == exponential || k.kind == power) {
      for (int32_t i = 0; i < 3; i++) unknown(-1, false);
      for (int32_t i = 0; i < 3; i++)
        for (int32_t j = 0; j < 3; j++) t_entry(k.row + i, first + j);
      for (int32_t j = 0; j < 3; j++) n_entry.push_back({first + j, first + j});
    } else {
      throw std::invalid_argument("PSD cones are not in this system");
    }
  }
  const int64_t size = static_cast<int64_t>(signs.size());

  std::vector<std::vector<int64_t>> in_row(m);
  for (size_t k = 0; k < t_row_.size(); k++) in_row[t_row_[k]].push_back(static_cast<int64_t>(k));
  std::vector<int64_t> rows, cols;
  auto entry = [&](int64_t a, int64_t b) {
    rows.push_back(std::min(a, b));
    cols.push_back(std::max(a, b));
  };
  for (size_t k = 0; k < p_row_.size(); k++) entry(p_row_[k], p_col_[k]);
  for (size_t k = 0; k < a_row_.size(); k++)
    for (int64_t t : in_row[a_row_[k]]) {
      coupling_a_.push_back(static_cast<int64_t>(k));
      coupling_t_.push_back(t);
      entry(a_col_[k], t_unknown[t]);
    }
  for (auto& e : n_entry) entry(e.first, e.second);
  symbolic_ = std::make_unique<Symbolic>(size, static_cast<int64_t>(rows.size()), rows.data(), cols.data(), signs.data(), late.data());
  const Schedule& g = symbolic_->schedule();
  const int64_t* slot = g.slot;
  p_slot_.assign(slot, slot + p_row_.size());
  slot += p_row_.size();
  coupling_slot_.assign(slot, slot + coupling_a_.size());
  slot += coupling_a_.size();
  n_slot_.assign(slot, slot + n_entry.size());
  std::vector<int32_t> place(size);
  for (int32_t i = 0; i < size; i++) place[g.perm[i]] = i;
  x_place_.assign(place.begin(), place.begin() + n);
  for (int32_t u : t_unknown) t_place_.push_back(place[u]);

  view_.schedule = &g;
  view_.n = n;
  view_.m = m;
  view_.cones = static_cast<int32_t>(cone_.size());
  view_.p_entries = c.p_entries;
  view_.a_entries = c.a_entries;
  view_.t_entries = static_cast<int64_t>(t_row_.size());
  view_.n_entries = static_cast<int64_t>(n_entry.size());
  view_.couplings = static_cast<int64_t>(coupling_a_.size());
  view_.p_row = p_row_.data();
  view_.p_col = p_col_.data();
  view_.a_row = a_row_.data();
  view_.a_col = a_col_.data();
  view_.p_from = p_from_.data();
  view_.a_from = a_from_.data();
  view_.p_slot = p_slot_.data();
  view_.n_slot = n_slot_.data();
  view_.x_place = x_place_.data();
  view_.t_row = t_row_.data();
  view_.t_place = t_place_.data();
  view_.coupling_a = coupling_a_.data();
  view_.coupling_t = coupling_t_.data();
  view_.coupling_slot = coupling_slot_.data();
  view_.cone = cone_.data();
}

}  // namespace layercompiler
