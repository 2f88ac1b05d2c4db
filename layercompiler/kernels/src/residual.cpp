#include "residual.hpp"

#include <algorithm>
#include <stdexcept>

namespace layercompiler {

namespace {
constexpr int64_t most_turned = 2'000'000;  // turned entries beyond which the system is refused
}

// A cone whose variables turn must have one entry a row, in columns of its own that P does not couple, with all or none of their diagonal in P.
void ResidualProgram::turn_variables(const Program& c, int32_t at, std::vector<Entry>& list, std::vector<int8_t>& taken) {
  const Cone& k = c.cone[at];
  if (k.kind != positive_semidefinite) throw std::invalid_argument("only the variables of PSD cones turn");
  std::vector<int64_t> own(k.dim, -1), diagonal(k.dim, -1);
  std::vector<int32_t> position(c.n, -1);
  for (int64_t e = 0; e < c.a_entries; e++) {
    int32_t i = a_row_[e] - k.row;
    if (i < 0 || i >= k.dim) continue;
    if (own[i] >= 0 || taken[a_col_[e]]) throw std::invalid_argument("a cone whose variables turn needs one entry a row and columns of its own");
    own[i] = e;
    taken[a_col_[e]] = 1;
    position[a_col_[e]] = i;
  }
  for (int64_t e : own)
    if (e < 0) throw std::invalid_argument("a cone whose variables turn has a row without an entry");
  int32_t found = 0;
  for (int64_t e = 0; e < c.p_entries; e++) {
    int32_t i = position[p_row_[e]], j = position[p_col_[e]];
    if (p_row_[e] != p_col_[e] && (i >= 0 || j >= 0)) throw std::invalid_argument("P couples the columns of a cone whose variables turn");
    if (i >= 0) diagonal[i] = e, found++;
  }
  if (found && found != k.dim) throw std::invalid_argument("P has a part of the diagonal of a cone whose variables turn");
  Turn turn{};
  turn.cone = cone_of_[at];
  turn.variables = 1;
  turn.own = static_cast<int64_t>(own_entry_.size());
  turn.scale = view_.basis_entries;
  view_.basis_entries += k.dim;
  for (int32_t i = 0; i < k.dim; i++) {
    own_entry_.push_back(own[i]);
    own_p_.push_back(diagonal[i]);
    own_col_.push_back(a_col_[own[i]]);
  }
  std::vector<int32_t> vector_of(c.m, -1);
  std::vector<Entry> next, turned;
  std::vector<int32_t> rows;
  turn.gather = static_cast<int64_t>(gather_from_.size());
  for (const Entry& e : list) {
    if (position[e.col] < 0) {
      next.push_back(e);
    } else if (e.row >= k.row && e.row < k.row + k.dim) {
      next.push_back({e.row, e.col, c.a_entries});  // the constant -1
    } else {
      if (vector_of[e.row] < 0) vector_of[e.row] = static_cast<int32_t>(rows.size()), rows.push_back(e.row);
      gather_from_.push_back(e.from);
      gather_vector_.push_back(vector_of[e.row]);
      gather_position_.push_back(position[e.col]);
    }
  }
  turn.gathers = static_cast<int64_t>(gather_from_.size()) - turn.gather;
  turn.vectors = static_cast<int32_t>(rows.size());
  turn.out = reserve(rows.size(), k.dim);
  for (size_t r = 0; r < rows.size(); r++)
    for (int32_t i = 0; i < k.dim; i++) next.push_back({rows[r], own_col_[turn.own + i], turn.out + static_cast<int64_t>(r) * k.dim + i});
  turn_.push_back(turn);
  list.swap(next);
}

void ResidualProgram::turn_rows(const Program& c, int32_t at, std::vector<Entry>& list) {
  const Cone& k = c.cone[at];
  Turn turn{};
  turn.cone = cone_of_[at];
  turn.gather = static_cast<int64_t>(gather_from_.size());
  std::vector<int32_t> vector_of(c.n, -1), columns;
  std::vector<Entry> next;
  for (const Entry& e : list) {
    if (e.row < k.row || e.row >= k.row + k.dim) {
      next.push_back(e);
      continue;
    }
    if (vector_of[e.col] < 0) vector_of[e.col] = static_cast<int32_t>(columns.size()), columns.push_back(e.col);
    gather_from_.push_back(e.from);
    gather_vector_.push_back(vector_of[e.col]);
    gather_position_.push_back(e.row - k.row);
  }
  turn.gathers = static_cast<int64_t>(gather_from_.size()) - turn.gather;
  turn.vectors = static_cast<int32_t>(columns.size());
  turn.out = reserve(columns.size(), k.dim);
  for (size_t v = 0; v < columns.size(); v++)
    for (int32_t i = 0; i < k.dim; i++) next.push_back({k.row + i, columns[v], turn.out + static_cast<int64_t>(v) * k.dim + i});
  turn_.push_back(turn);
  list.swap(next);
}

int64_t ResidualProgram::reserve(size_t vectors, int32_t dim) {
  int64_t first = view_.a_entries + view_.turned;
  view_.turned += static_cast<int64_t>(vectors) * dim;
  if (view_.turned > most_turned) throw std::invalid_argument("the system in the coordinates of the eigenvectors is too large");
  return first;
}

ResidualProgram::ResidualProgram(const ConicPattern& pattern, const int8_t* turns, const Target* target) : target_(target) {
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
    cone_.push_back({kind, row, dim, 0, alpha, static_cast<int64_t>(t_row_.size()), static_cast<int64_t>(n_entry.size()), 0, 0});
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
    cone_of_.push_back(static_cast<int32_t>(cone_.size()) - 1);
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
      NewtonCone& mine = cone_.back();
      mine.order = k.order;
      mine.basis = view_.basis_entries;
      mine.values = view_.eigenvalues;
      view_.basis_entries += int64_t{k.order} * k.order;
      view_.eigenvalues += k.order;
      view_.largest_order = std::max(view_.largest_order, k.order);
      for (int32_t i = 0; i < k.dim; i++) unknown(-1, false);
      for (int32_t i = 0; i < k.dim; i++) t_entry(k.row + i, first + i), n_entry.push_back({first + i, first + i});
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
  std::vector<Entry> list;
  for (size_t k = 0; k < a_row_.size(); k++) list.push_back({a_row_[k], a_col_[k], static_cast<int64_t>(k)});
  view_.a_entries = c.a_entries;
  view_.turned = view_.largest_order ? 1 : 0;
  std::vector<int8_t> taken(n, 0);
  for (int32_t t = 0; t < c.cones; t++)
    if (turns && turns[t]) turn_variables(c, t, list, taken);
  for (int32_t t = 0; t < c.cones; t++)
    if (c.cone[t].kind == positive_semidefinite && !(turns && turns[t])) turn_rows(c, t, list);
  for (const Entry& e : list)
    for (int64_t t : in_row[e.row]) {
      coupling_a_.push_back(e.from);
      coupling_t_.push_back(t);
      entry(e.col, t_unknown[t]);
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
  view_.turns = static_cast<int32_t>(turn_.size());
  view_.turn = turn_.data();
  view_.gather_from = gather_from_.data();
  view_.gather_vector = gather_vector_.data();
  view_.gather_position = gather_position_.data();
  view_.own_entry = own_entry_.data();
  view_.own_p = own_p_.data();
  view_.own_col = own_col_.data();
}

}  // namespace layercompiler
