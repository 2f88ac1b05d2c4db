#include "symbolic.hpp"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>

#include "ordering.hpp"

namespace layercompiler {
namespace {

constexpr int32_t widest_supernode = 16;
constexpr double padding_limit = 0.1;  // share of explicit zeros that a merged supernode may carry
constexpr int32_t fewest_alike = 4, largest_alike = 32;  // subtrees, and columns of one, that are worth a bundle

using Lists = std::vector<std::vector<int32_t>>;

std::vector<int32_t> inverse(const std::vector<int32_t>& order) {
  std::vector<int32_t> position(order.size());
  for (size_t k = 0; k < order.size(); k++) position[order[k]] = static_cast<int32_t>(k);
  return position;
}

// Neighbours with larger number, in elimination order.
Lists later_neighbours(const Lists& neighbours, const std::vector<int32_t>& order) {
  std::vector<int32_t> position = inverse(order);
  Lists later(order.size());
  for (size_t k = 0; k < order.size(); k++) {
    for (int32_t j : neighbours[order[k]])
      if (position[j] > static_cast<int32_t>(k)) later[k].push_back(position[j]);
    std::sort(later[k].begin(), later[k].end());
  }
  return later;
}

}  // namespace

// Elimination tree and column patterns of L (strictly below the diagonal) of one ordering.
struct Symbolic::Tree {
  std::vector<int32_t> parent;
  Lists children, pattern;
  int64_t entries = 0, flops = 0;

  explicit Tree(const Lists& later) : parent(later.size(), -1), children(later.size()), pattern(later.size()) {
    const int32_t n = static_cast<int32_t>(later.size());
    std::vector<int32_t> mark(n, -1);
    for (int32_t j = 0; j < n; j++) {
      mark[j] = j;
      auto& own = pattern[j];
      auto add = [&](const std::vector<int32_t>& from) {
        for (int32_t i : from)
          if (i > j && mark[i] != j) {
            mark[i] = j;
            own.push_back(i);
          }
      };
      add(later[j]);
      for (int32_t c : children[j]) add(pattern[c]);
      std::sort(own.begin(), own.end());
      if (!own.empty()) {
        parent[j] = own[0];
        children[own[0]].push_back(j);
      }
      int64_t size = static_cast<int64_t>(own.size());
      entries += size;
      flops += size * size + 2 * size;
    }
  }
};

Symbolic::Symbolic(int64_t n, int64_t count, const int64_t* rows, const int64_t* columns, const int8_t* signs, const int8_t* late) {
  if (n < 1 || n > (int64_t{1} << 30)) throw std::invalid_argument("the order of the matrix must be at least 1");
  if (count < 0 || count > (int64_t{1} << 31) - n - 2) throw std::invalid_argument("too many entries");
  for (int64_t k = 0; k < count; k++)
    if (rows[k] < 0 || rows[k] > columns[k] || columns[k] >= n)
      throw std::invalid_argument("entry " + std::to_string(k) + " (" + std::to_string(rows[k]) + ", " + std::to_string(columns[k]) + ") is not in the upper triangle of order " + std::to_string(n));
  for (int64_t i = 0; i < n; i++)
    if (signs[i] != 1 && signs[i] != -1) throw std::invalid_argument("sign " + std::to_string(i) + " is not +1 or -1");
  n_ = static_cast<int32_t>(n);
  inputs_ = count;
  Lists neighbours(n_);
  for (int64_t k = 0; k < count; k++)
    if (rows[k] != columns[k]) {
      neighbours[rows[k]].push_back(static_cast<int32_t>(columns[k]));
      neighbours[columns[k]].push_back(static_cast<int32_t>(rows[k]));
    }
  for (auto& list : neighbours) {
    std::sort(list.begin(), list.end());
    list.erase(std::unique(list.begin(), list.end()), list.end());
  }
  choose_order(neighbours, signs, late);
  Tree tree(later_neighbours(neighbours, perm_));
  factor_entries_ = tree.entries;
  flops_ = tree.flops;
  std::vector<Bundle> bundles = bundle(tree);
  if (!bundles.empty()) tree = Tree(later_neighbours(neighbours, perm_));
  position_ = inverse(perm_);
  sign_.resize(n_);
  for (int32_t i = 0; i < n_; i++) sign_[i] = signs[perm_[i]];
  lay_out(tree, group(tree, bundles));
  plan_updates();
  place_entries(count, rows, columns);
  publish();
}

// The cheapest of the orderings, then a postorder in which leaves with one pattern stand side by side.
void Symbolic::choose_order(const Lists& neighbours, const int8_t* signs, const int8_t* late) {
  // Plain minimum degree, rows first (normal equations), variables first; the latter two only where they save enough to forgo its stable pivots.
  std::vector<int8_t> all(n_, 0), negative(n_), positive(n_), held(n_, 0);
  if (late) held.assign(late, late + n_);
  for (int32_t i = 0; i < n_; i++) {
    negative[i] = signs[i] > 0 && !held[i];
    positive[i] = signs[i] < 0 || held[i];
  }
  double best = -1;
  for (const auto* stage : {&all, &negative, &positive}) {
    std::vector<int32_t> order = minimum_degree(neighbours, *stage, held);
    double flops = static_cast<double>(Tree(later_neighbours(neighbours, order)).flops);
    if (best < 0 || flops < 0.9 * best) {
      best = flops;
      perm_ = order;
    }
  }
  Lists later = later_neighbours(neighbours, perm_);
  Tree tree(later);
  auto leaves_first = [&](int32_t a, int32_t b) {
    bool leaf_a = tree.children[a].empty(), leaf_b = tree.children[b].empty();
    if (leaf_a != leaf_b) return leaf_a;
    return leaf_a && later[a] < later[b];
  };
  std::vector<int32_t> roots, post;
  for (int32_t i = 0; i < n_; i++)
    if (tree.parent[i] < 0) roots.push_back(i);
  for (auto& list : tree.children) std::stable_sort(list.begin(), list.end(), leaves_first);
  std::stable_sort(roots.begin(), roots.end(), leaves_first);
  std::vector<std::pair<int32_t, size_t>> stack;
  for (int32_t root : roots) {
    stack.push_back({root, 0});
    while (!stack.empty()) {
      auto [node, next] = stack.back();
      if (next < tree.children[node].size()) {
        stack.back().second++;
        stack.push_back({tree.children[node][next], 0});
      } else {
        post.push_back(perm_[node]);
        stack.pop_back();
      }
    }
  }
  perm_ = post;
}

// Subtrees that differ in nothing but where they stand, beneath one parent: their columns are taken by turns, so that like columns stand side by side. Their
// patterns agree outside of the subtrees, and inside they lie as the columns do. Subtrees that make wide supernodes of their own stay as they are.
// Renumbers `perm_`, which is a postorder.
std::vector<Symbolic::Bundle> Symbolic::bundle(const Tree& tree) {
  std::vector<int32_t> size(n_, 1), natural(n_ + 1, 0);
  for (int32_t j = 0; j < n_; j++)
    if (tree.parent[j] >= 0) size[tree.parent[j]] += size[j];
  for (const Node& node : group(tree, {})) natural[node.first + 1] = 1;
  for (int32_t j = 0; j < n_; j++) natural[j + 1] += natural[j];  // supernodes that begin before column j
  auto alike = [&](int32_t a, int32_t b) {
    if (size[a] != size[b]) return false;
    for (int32_t i = size[a] - 1; i >= 0; i--) {
      const auto &p = tree.pattern[a - i], &q = tree.pattern[b - i];
      if (p.size() != q.size()) return false;
      for (size_t k = 0; k < p.size(); k++)
        if (p[k] <= a ? p[k] - a != q[k] - b : p[k] != q[k]) return false;
    }
    return true;
  };
  std::map<int32_t, std::vector<std::vector<int32_t>>> beneath;  // by parent: classes of its children, those of one child left out
  for (int32_t j = 0; j < n_; j++) {
    int32_t columns = size[j], nodes = natural[j + 1] - natural[j - columns + 1];
    if (columns < 2 || columns > largest_alike || columns > 2 * nodes) continue;
    auto& classes = beneath[tree.parent[j]];
    auto found = std::find_if(classes.begin(), classes.end(), [&](const auto& c) { return alike(c[0], j); });
    if (found == classes.end()) classes.push_back({j});
    else found->push_back(j);
  }
  std::vector<int32_t> before(n_, -1), order;  // of the first column of a subtree in a bundle: the bundle's number
  std::vector<std::vector<int32_t>> roots;
  std::vector<uint8_t> taken(n_, 0);
  for (auto entry = beneath.rbegin(); entry != beneath.rend(); ++entry)  // from above: a parent within a bundle has its children there too
    for (auto& members : entry->second) {
      if (static_cast<int32_t>(members.size()) < fewest_alike || taken[members[0]]) continue;
      for (int32_t root : members) std::fill(taken.begin() + (root - size[root] + 1), taken.begin() + root + 1, 1);
      before[members[0] - size[members[0]] + 1] = static_cast<int32_t>(roots.size());
      roots.push_back(members);
    }
  std::vector<Bundle> bundles;
  if (roots.empty()) return bundles;
  for (int32_t j = 0; j < n_; j++) {
    if (!taken[j]) order.push_back(perm_[j]);
    if (before[j] < 0) continue;
    const auto& members = roots[before[j]];
    for (size_t from = 0; from < members.size(); from += widest_supernode) {
      size_t until = std::min(members.size(), from + widest_supernode);
      bundles.push_back({static_cast<int32_t>(order.size()), static_cast<int32_t>(until - from), size[members[0]]});
      for (int32_t i = size[members[0]] - 1; i >= 0; i--)
        for (size_t k = from; k < until; k++) order.push_back(perm_[members[k] - i]);
    }
  }
  perm_ = order;
  return bundles;
}

// Supernodes: bundles; neighbouring columns of nested pattern, merged with their parent while the padding stays small; independent leaves of one pattern.
std::vector<Symbolic::Node> Symbolic::group(const Tree& tree, const std::vector<Bundle>& bundles) const {
  std::vector<Node> nodes;
  auto below = [&](int32_t c) { return static_cast<int64_t>(tree.pattern[c].size()); };
  auto bundle = bundles.begin();
  int32_t closed = 0;  // where the last bundle ends
  for (int32_t j = 0; j < n_; j++) {
    if (bundle != bundles.end() && bundle->first == j) {
      int32_t until = j + bundle->width * bundle->size;
      for (; j < until; j += bundle->width) {
        const auto& pattern = tree.pattern[j];
        auto common = std::lower_bound(pattern.begin(), pattern.end(), until);
        nodes.push_back({j, j + bundle->width, bundle->width * below(j), true, static_cast<int32_t>(common - pattern.begin())});
      }
      closed = until, ++bundle, --j;
      continue;
    }
    nodes.push_back({j, j + 1, below(j), false, 0});
    if (nodes.size() >= 2 && tree.children[j].empty() && below(j) > 0) {
      Node& before = nodes[nodes.size() - 2];
      int32_t width = before.last - before.first;
      if ((before.separable || width == 1) && width < widest_supernode && before.first >= closed && tree.pattern[before.last - 1] == tree.pattern[j]) {
        before.last = j + 1;
        before.separable = true;
        before.entries += below(j);
        nodes.pop_back();
        continue;
      }
    }
    while (nodes.size() >= 2) {
      Node &child = nodes[nodes.size() - 2], &node = nodes.back();
      int32_t up = tree.parent[child.last - 1];
      if (up < node.first || up >= node.last || child.separable || node.separable) break;
      int64_t width = node.last - child.first, full = width * (width - 1) / 2 + width * below(node.last - 1), real = child.entries + node.entries;
      if (width > widest_supernode) break;
      double padding = static_cast<double>(full - real) / static_cast<double>(std::max<int64_t>(1, full));
      bool tiny = child.last - child.first <= 2 && width <= 4;
      if (full != real && !(padding < padding_limit || (tiny && padding < 2 * padding_limit))) break;
      child.last = node.last;
      child.entries = real;
      nodes.pop_back();
    }
  }
  return nodes;
}

void Symbolic::lay_out(const Tree& tree, const std::vector<Node>& nodes) {
  start_ = {0};
  rowptr_ = {0};
  offset_ = {0};
  owner_.resize(n_);
  for (size_t s = 0; s < nodes.size(); s++) {
    const Node& node = nodes[s];
    const auto& pattern = tree.pattern[node.privates ? node.first : node.last - 1];
    rows_.insert(rows_.end(), pattern.begin(), pattern.end());
    start_.push_back(node.last);
    rowptr_.push_back(static_cast<int32_t>(rows_.size()));
    separable_.push_back(node.separable);
    privates_.push_back(node.privates);
    int64_t width = node.last - node.first;
    offset_.push_back(offset_.back() + width * ((node.separable ? 1 : width) + static_cast<int64_t>(pattern.size())));
    for (int32_t c = node.first; c < node.last; c++) owner_[c] = static_cast<int32_t>(s);
  }
}

void Symbolic::plan_updates() {
  const int32_t count = static_cast<int32_t>(separable_.size());
  std::vector<std::vector<Update>> incoming(count);
  for (int32_t s = 0; s < count; s++)
    for (int32_t r = rowptr_[s]; r < rowptr_[s + 1];) {
      int32_t target = owner_[rows_[r]], end = r;
      while (end < rowptr_[s + 1] && owner_[rows_[end]] == target) end++;
      incoming[target].push_back({s, r - rowptr_[s], end - r, 0});
      r = end;
    }
  updptr_ = {0};
  std::vector<int32_t> place(n_, 0);
  for (int32_t t = 0; t < count; t++) {
    int32_t head = separable_[t] ? 1 : start_[t + 1] - start_[t];
    for (int32_t c = start_[t]; c < start_[t + 1]; c++) place[c] = c - start_[t];
    for (int32_t r = rowptr_[t]; r < rowptr_[t + 1]; r++) place[rows_[r]] = head + r - rowptr_[t];
    for (Update& u : incoming[t]) {
      u.relative = static_cast<int64_t>(relative_.size());
      for (int32_t r = rowptr_[u.source] + u.first; r < rowptr_[u.source + 1]; r++) relative_.push_back(place[rows_[r]]);
      updates_.push_back(u);
    }
    updptr_.push_back(static_cast<int32_t>(updates_.size()));
  }
}

// Distinct entries by columns in elimination order, each with its place in the panels.
void Symbolic::place_entries(int64_t count, const int64_t* rows, const int64_t* columns) {
  std::vector<int64_t> key(count + n_);
  auto key_of = [&](int64_t a, int64_t b) { return std::max(a, b) * n_ + std::min(a, b); };
  for (int64_t k = 0; k < count; k++) key[k] = key_of(position_[rows[k]], position_[columns[k]]);
  for (int32_t i = 0; i < n_; i++) key[count + i] = key_of(i, i);
  std::vector<int64_t> distinct(key);
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  slot_.resize(count);
  for (int64_t k = 0; k < count; k++) slot_[k] = std::lower_bound(distinct.begin(), distinct.end(), key[k]) - distinct.begin();
  colptr_.assign(n_ + 1, 0);
  for (int64_t e : distinct) {
    rowind_.push_back(static_cast<int32_t>(e % n_));
    colptr_[e / n_ + 1]++;
  }
  for (int32_t c = 0; c < n_; c++) colptr_[c + 1] += colptr_[c];
  target_.resize(distinct.size());
  for (size_t k = 0; k < distinct.size(); k++) {
    int32_t column = static_cast<int32_t>(distinct[k] % n_), row = static_cast<int32_t>(distinct[k] / n_);  // of the lower triangle
    int32_t node = owner_[column], width = start_[node + 1] - start_[node], lane = column - start_[node], place;
    auto first = rows_.begin() + rowptr_[node], common = first + privates_[node];
    auto own = std::find(first, common, row - lane);
    int32_t head = separable_[node] ? 1 : width;
    if (row < start_[node + 1]) place = separable_[node] ? 0 : row - start_[node];
    else if (own != common) place = head + static_cast<int32_t>(own - first);
    else place = head + static_cast<int32_t>(std::lower_bound(common, rows_.begin() + rowptr_[node + 1], row) - first);
    target_[k] = offset_[node] + static_cast<int64_t>(place) * width + (column - start_[node]);
  }
}

int64_t Symbolic::find(int32_t row, int32_t column) const {
  int32_t a = position_[row], b = position_[column];
  if (a > b) std::swap(a, b);
  auto first = rowind_.begin() + colptr_[b], last = rowind_.begin() + colptr_[b + 1], at = std::lower_bound(first, last, a);
  return at != last && *at == a ? at - rowind_.begin() : -1;
}

void Symbolic::publish() {
  view_.n = n_;
  view_.supernodes = static_cast<int32_t>(separable_.size());
  for (int32_t s = 0; s < view_.supernodes; s++) {
    view_.widest = std::max(view_.widest, start_[s + 1] - start_[s]);
    view_.tallest = std::max(view_.tallest, start_[s + 1] - start_[s] + rowptr_[s + 1] - rowptr_[s]);
  }
  view_.inputs = inputs_;
  view_.entries = static_cast<int64_t>(rowind_.size());
  view_.panel = offset_.back();
  view_.start = start_.data();
  view_.rowptr = rowptr_.data();
  view_.rows = rows_.data();
  view_.updptr = updptr_.data();
  view_.relative = relative_.data();
  view_.separable = separable_.data();
  view_.privates = privates_.data();
  view_.offset = offset_.data();
  view_.updates = updates_.data();
  view_.target = target_.data();
  view_.sign = sign_.data();
  view_.colptr = colptr_.data();
  view_.rowind = rowind_.data();
  view_.slot = slot_.data();
  view_.perm = perm_.data();
}

}  // namespace layercompiler
