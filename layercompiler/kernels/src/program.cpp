#include "program.hpp"

#include <algorithm>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>

namespace layercompiler {
namespace {

constexpr int64_t largest = int64_t{1} << 28;

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

}  // namespace

void ConicProgram::sort_by_columns(int64_t count, const int64_t* rows, const int64_t* cols, int64_t row_limit, int64_t col_limit, bool upper, const char* name,
                                   std::vector<int32_t>& row, std::vector<int32_t>& col, std::vector<int64_t>& from) {
  for (int64_t k = 0; k < count; k++)
    if (rows[k] < 0 || rows[k] >= row_limit || cols[k] < 0 || cols[k] >= col_limit || (upper && rows[k] > cols[k]))
      refuse(std::string("entry ") + std::to_string(k) + " of " + name + " lies outside its triangle or shape");
  from.resize(count);
  std::iota(from.begin(), from.end(), int64_t{0});
  std::stable_sort(from.begin(), from.end(), [&](int64_t a, int64_t b) { return cols[a] != cols[b] ? cols[a] < cols[b] : rows[a] < rows[b]; });
  for (int64_t k : from) {
    if (!row.empty() && row.back() == rows[k] && col.back() == cols[k]) refuse(std::string(name) + " has an entry twice");
    row.push_back(static_cast<int32_t>(rows[k]));
    col.push_back(static_cast<int32_t>(cols[k]));
  }
}

void ConicProgram::check_and_lay_cones(const ConicPattern& c) {
  if (c.n < 1 || c.m < 0 || c.n > largest || c.m > largest) refuse("wrong number of variables or rows");
  if (c.p_count < 0 || c.a_count < 0 || c.p_count > largest || c.a_count > largest) refuse("wrong number of entries");
  if (c.zero < 0 || c.nonnegative < 0 || c.cones < 0 || c.zero > c.m || c.nonnegative > c.m || c.cones > c.m) refuse("wrong cone counts");
  int64_t row = c.zero + c.nonnegative, storage = 0, degree = c.nonnegative;
  view_.symmetric = true;
  for (int64_t t = 0; t < c.cones; t++) {
    Cone k{};
    k.kind = c.kinds[t];
    int64_t size = c.sizes[t], dim = 3;
    if (t && k.kind < c.kinds[t - 1]) refuse("cones are not in the order second-order, PSD, exponential, power");
    k.row = static_cast<int32_t>(row);
    k.storage = storage;
    switch (k.kind) {
      case second_order:
        if (size < 1 || size > c.m) refuse("wrong size of a second-order cone");
        dim = size;
        k.expanded = dim > 1;
        storage += 2;
        degree += 1;
        break;
      case positive_semidefinite:
        if (size < 1 || size > 4096) refuse("wrong order of a PSD cone");
        dim = size * (size + 1) / 2;
        k.order = static_cast<int32_t>(size);
        view_.largest_order = std::max(view_.largest_order, k.order);
        storage += 3 * size * size + size;
        degree += size;
        break;
      case exponential:
      case power:
        k.alpha = k.kind == power ? c.alphas[t] : 0.0;
        if (k.kind == power && !(k.alpha > 0.0 && k.alpha < 1.0)) refuse("the exponent of a power cone is not between 0 and 1");
        storage += 18;
        degree += 3;
        view_.symmetric = false;
        break;
      default: refuse("unknown kind of cone");
    }
    k.dim = static_cast<int32_t>(dim);
    row += dim;
    if (row > c.m) refuse("the cones have more rows than A");
    cone_.push_back(k);
  }
  for (size_t first = 0; first < cone_.size();) {
    size_t end = first + 1;
    while (end < cone_.size() && cone_[end].kind == cone_[first].kind && cone_[end].alpha == cone_[first].alpha) end++;
    for (size_t t = first; t < end; t++) {
      cone_[t].run_place = static_cast<int32_t>(t - first);
      cone_[t].run_length = static_cast<int32_t>(end - first);
    }
    first = end;
  }
  if (row != c.m) refuse("the cones do not have as many rows as A");
  view_.n = static_cast<int32_t>(c.n);
  view_.m = static_cast<int32_t>(c.m);
  view_.zero = static_cast<int32_t>(c.zero);
  view_.nonnegative = static_cast<int32_t>(c.nonnegative);
  view_.cones = static_cast<int32_t>(cone_.size());
  view_.degree = static_cast<int32_t>(degree);
  view_.cone_storage = storage;
}

ConicProgram::ConicProgram(const ConicPattern& pattern, const Target* target, bool analyse) : target_(target) {
  check_and_lay_cones(pattern);
  sort_by_columns(pattern.p_count, pattern.p_rows, pattern.p_cols, pattern.n, pattern.n, true, "P", p_row_, p_col_, p_from_);
  sort_by_columns(pattern.a_count, pattern.a_rows, pattern.a_cols, pattern.m, pattern.n, false, "A", a_row_, a_col_, a_from_);
  if (analyse) assemble();
  publish();
}

// Where products with the cone's matrix of order k cost less than a dense block of its k (k + 1) / 2 rows, whose operations are half again as slow.
void ConicProgram::find_owners() {
  std::vector<int32_t> entries_of(view_.m, 0);
  std::vector<int64_t> entry_of(view_.m, -1), first(view_.n + 1, 0);
  std::vector<uint8_t> taken(view_.n, 0);  // variables that no cone may have any more
  for (size_t k = 0; k < a_row_.size(); k++) {
    entries_of[a_row_[k]]++;
    entry_of[a_row_[k]] = static_cast<int64_t>(k);
    first[a_col_[k] + 1]++;
  }
  for (int32_t j = 0; j < view_.n; j++) first[j + 1] += first[j];
  for (size_t k = 0; k < p_row_.size(); k++) taken[p_row_[k]] = taken[p_col_[k]] = 1;
  for (size_t t = 0; t < cone_.size(); t++) {
    const Cone& k = cone_[t];
    if (k.kind != positive_semidefinite) continue;
    std::vector<int32_t> columns;
    for (int32_t i = k.row; i < k.row + k.dim && entries_of[i] == 1; i++) columns.push_back(a_col_[entry_of[i]]);
    std::vector<int32_t> sorted(columns);
    std::sort(sorted.begin(), sorted.end());
    bool fit = static_cast<int32_t>(columns.size()) == k.dim && std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end();
    for (int32_t j : columns) fit = fit && !taken[j];
    if (!fit) continue;
    std::map<int32_t, std::vector<std::pair<int64_t, int64_t>>> touching;  // by row: places among own_*, entries of A
    const int64_t own = static_cast<int64_t>(own_col_.size());
    for (int32_t i = 0; i < k.dim; i++)
      for (int64_t e = first[columns[i]]; e < first[columns[i] + 1]; e++)
        if (a_row_[e] != k.row + i) touching[a_row_[e]].push_back({own + i, e});
    double count = static_cast<double>(touching.size()), dim = k.dim, cube = 2.0 * k.order * k.order * k.order, touches = 0;
    for (const auto& row : touching) touches += static_cast<double>(row.second.size());
    if (touching.empty() || count * cube + 0.5 * count * touches + 6 * cube > 1.5 * (dim * dim * dim / 6 + 5.5 * dim * dim)) continue;
    cone_[t].owned = true;
    Owner owner{static_cast<int32_t>(t), static_cast<int32_t>(touching.size()), own, static_cast<int64_t>(touch_row_.size()), 0};
    for (int32_t i = 0; i < k.dim; i++) {
      taken[columns[i]] = 1;
      own_col_.push_back(columns[i]);
      own_entry_.push_back(entry_of[k.row + i]);
    }
    for (const auto& row : touching) {
      touch_row_.push_back(row.first);
      for (const auto& [place, entry] : row.second) touch_own_.push_back(place), touch_entry_.push_back(entry);
      touch_start_.push_back(static_cast<int64_t>(touch_own_.size()));
    }
    owner_.push_back(owner);
  }
}

int64_t ConicProgram::flops() const {
  int64_t sum = symbolic_->flops();
  for (const Owner& o : owner_) {
    const int64_t order = cone_[o.cone].order;
    sum += 4 * o.count * order * order * order;
  }
  return sum;
}

void ConicProgram::assemble() {
  const int32_t n = view_.n, m = view_.m;
  touch_start_ = {0};
  find_owners();
  std::vector<int32_t> entries_of(m, 0), variable(n, 0), unknown(m, -1), extra_first(cone_.size(), -1);
  std::vector<uint8_t> owned(m, 0);
  for (int32_t r : a_row_) entries_of[r]++;
  for (int32_t j : own_col_) variable[j] = -1;
  for (int64_t e : own_entry_) owned[a_row_[e]] = 1;
  for (int32_t r : touch_row_) entries_of[r] = -1;  // a bound on such a variable is a row like others
  int32_t size = 0;
  for (int32_t& j : variable)
    if (j >= 0) j = size++;
  std::vector<int8_t> signs(size, 1);
  for (int32_t r = 0; r < m; r++) {
    bool bound = r >= view_.zero && r < view_.zero + view_.nonnegative && entries_of[r] == 1;
    if (!bound && !owned[r]) unknown[r] = size++;
  }
  signs.resize(size, -1);
  // Extra unknowns carry the strong directions of a cone's block. Eliminated before their rows they would form that block, whose weak directions then
  // drown in rounding: so they are late.
  std::vector<int8_t> late(size, 0);
  for (size_t t = 0; t < cone_.size(); t++) {
    bool three = cone_[t].kind == exponential || cone_[t].kind == power;
    if (!cone_[t].expanded && !three) continue;
    extra_first[t] = size;
    size += three ? 1 : 2;
    if (!three) signs.push_back(-1);
    signs.push_back(1);
    late.resize(size, 1);
  }
  std::vector<int64_t> rows, cols;
  auto entry = [&](int64_t a, int64_t b) {
    rows.push_back(std::min(a, b));
    cols.push_back(std::max(a, b));
    return static_cast<int64_t>(rows.size()) - 1;
  };
  for (size_t k = 0; k < p_row_.size(); k++) p_slot_.push_back(entry(variable[p_row_[k]], variable[p_col_[k]]));
  for (size_t k = 0; k < a_row_.size(); k++) {
    if (variable[a_col_[k]] < 0) {
      a_slot_.push_back(-1);
    } else if (unknown[a_row_[k]] >= 0) {
      a_slot_.push_back(entry(variable[a_col_[k]], unknown[a_row_[k]]));
    } else {
      a_slot_.push_back(-1);
      fold_row_.push_back(a_row_[k]);
      fold_col_.push_back(a_col_[k]);
      fold_entry_.push_back(static_cast<int64_t>(k));
    }
  }
  for (int32_t j = 0; j < n; j++) variable_slot_.push_back(variable[j] >= 0 ? entry(variable[j], variable[j]) : -1);
  for (int32_t r = 0; r < view_.zero + view_.nonnegative; r++) row_slot_.push_back(unknown[r] >= 0 ? entry(unknown[r], unknown[r]) : -1);
  for (size_t t = 0; t < cone_.size(); t++) {
    Cone& k = cone_[t];
    k.slot = static_cast<int64_t>(slots_.size());
    if (k.expanded) {
      for (int32_t i = 0; i < k.dim; i++) slots_.push_back(entry(unknown[k.row + i], unknown[k.row + i]));
      for (int32_t e = 0; e < 2; e++)
        for (int32_t i = 0; i < k.dim; i++) slots_.push_back(entry(unknown[k.row + i], extra_first[t] + e));
      for (int32_t e = 0; e < 2; e++) slots_.push_back(entry(extra_first[t] + e, extra_first[t] + e));
    } else if (!k.owned) {
      for (int32_t j = 0; j < k.dim; j++)
        for (int32_t i = 0; i <= j; i++) slots_.push_back(entry(unknown[k.row + i], unknown[k.row + j]));
      if (extra_first[t] >= 0) {
        for (int32_t i = 0; i < k.dim; i++) slots_.push_back(entry(unknown[k.row + i], extra_first[t]));
        slots_.push_back(entry(extra_first[t], extra_first[t]));
      }
    }
  }
  for (Owner& o : owner_) {
    o.slot = static_cast<int64_t>(slots_.size());
    const int32_t* row = touch_row_.data() + o.row;
    for (int32_t j = 0; j < o.count; j++)
      for (int32_t i = 0; i <= j; i++) slots_.push_back(entry(unknown[row[i]], unknown[row[j]]));
  }
  symbolic_ = std::make_unique<Symbolic>(size, static_cast<int64_t>(rows.size()), rows.data(), cols.data(), signs.data(), late.data());
  const Schedule& g = symbolic_->schedule();
  auto resolve = [&](std::vector<int64_t>& list) {
    for (int64_t& k : list)
      if (k >= 0) k = g.slot[k];
  };
  for (auto* list : {&p_slot_, &a_slot_, &variable_slot_, &row_slot_, &slots_}) resolve(*list);
  std::vector<int32_t> place(size);
  for (int32_t i = 0; i < size; i++) place[g.perm[i]] = i;
  for (int32_t j : variable) x_place_.push_back(j >= 0 ? place[j] : -1);
  for (int32_t r = 0; r < m; r++) row_place_.push_back(unknown[r] >= 0 ? place[unknown[r]] : -1);
  for (size_t t = 0; t < cone_.size(); t++)
    if (extra_first[t] >= 0)
      for (int32_t e = 0; e < (cone_[t].expanded ? 2 : 1); e++) extra_place_.push_back(place[extra_first[t] + e]);
  view_.schedule = &g;
  view_.size = size;
}

void ConicProgram::publish() {
  view_.p_entries = static_cast<int64_t>(p_row_.size());
  view_.a_entries = static_cast<int64_t>(a_row_.size());
  view_.p_row = p_row_.data();
  view_.p_col = p_col_.data();
  view_.a_row = a_row_.data();
  view_.a_col = a_col_.data();
  view_.p_from = p_from_.data();
  view_.a_from = a_from_.data();
  view_.p_slot = p_slot_.data();
  view_.a_slot = a_slot_.data();
  view_.row_slot = row_slot_.data();
  view_.variable_slot = variable_slot_.data();
  view_.x_place = x_place_.data();
  view_.row_place = row_place_.data();
  view_.folded = static_cast<int32_t>(fold_row_.size());
  view_.fold_row = fold_row_.data();
  view_.fold_col = fold_col_.data();
  view_.fold_entry = fold_entry_.data();
  view_.owners = static_cast<int32_t>(owner_.size());
  view_.owner = owner_.data();
  view_.owned = static_cast<int64_t>(own_col_.size());
  view_.touches = static_cast<int64_t>(touch_own_.size());
  view_.own_col = own_col_.data();
  view_.own_entry = own_entry_.data();
  view_.touch_row = touch_row_.data();
  view_.touch_start = touch_start_.data();
  view_.touch_own = touch_own_.data();
  view_.touch_entry = touch_entry_.data();
  view_.cone = cone_.data();
  view_.slots = slots_.data();
  view_.extras = static_cast<int32_t>(extra_place_.size());
  view_.extra_place = extra_place_.data();
}

}  // namespace layercompiler
