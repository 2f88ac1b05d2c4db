#include "ordering.hpp"

#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

namespace layercompiler {
namespace {

// The quotient graph: variables not yet eliminated, and elements (cliques left behind by eliminated ones).
class QuotientGraph {
 public:
  QuotientGraph(const std::vector<std::vector<int32_t>>& neighbours, const std::vector<int8_t>& stage, const std::vector<int8_t>& late)
      : n_(static_cast<int32_t>(neighbours.size())),
        stage_(stage),
        variables_(neighbours),
        elements_(neighbours.size()),
        clique_(neighbours.size()),
        weight_(neighbours.size(), 1),
        alive_(neighbours.size(), 1),
        degree_(neighbours.size()),
        outside_(neighbours.size()),
        stamp_(neighbours.size(), -1),
        mark_(neighbours.size(), -1),
        members_(neighbours.size()),
        score_(neighbours.size(), -1),
        waits_(neighbours.size(), 0),
        holds_(neighbours.size()) {
    for (int32_t i = 0; i < n_; i++)
      if (late[i])
        for (int32_t j : neighbours[i])
          if (!late[j]) {
            waits_[i]++;
            holds_[j].push_back(i);
          }
    for (int32_t i = 0; i < n_; i++) {
      degree_[i] = static_cast<int64_t>(variables_[i].size());
      members_[i] = {i};
      if (waits_[i] == 0) push(i);
    }
  }

  std::vector<int32_t> order() {
    std::vector<int32_t> result;
    result.reserve(n_);
    while (static_cast<int32_t>(result.size()) < n_) {
      int32_t pivot = pop();
      eliminate(pivot, result);
    }
    return result;
  }

 private:
  using Entry = std::pair<int64_t, std::pair<int64_t, int32_t>>;  // score, age (latest first among equals), node

  void push(int32_t i) {
    score_[i] = degree_[i] + (static_cast<int64_t>(stage_[i]) << 40);
    heap_.push({score_[i], {-(age_++), i}});
  }

  int32_t pop() {
    for (;;) {
      Entry top = heap_.top();
      heap_.pop();
      int32_t i = top.second.second;
      if (alive_[i] && top.first == score_[i]) return i;
    }
  }

  void eliminate(int32_t pivot, std::vector<int32_t>& result) {
    // The new clique: everything joined with the pivot directly or through an element, which is absorbed.
    std::vector<int32_t>& clique = clique_[pivot];
    clique.clear();
    const int32_t round = rounds_++;
    mark_[pivot] = round;
    auto gather = [&](const std::vector<int32_t>& from) {
      for (int32_t v : from)
        if (alive_[v] && mark_[v] != round) {
          mark_[v] = round;
          clique.push_back(v);
        }
    };
    gather(variables_[pivot]);
    for (int32_t e : elements_[pivot]) {
      gather(clique_[e]);
      clique_[e].clear();
      clique_[e].shrink_to_fit();
    }
    alive_[pivot] = 0;
    finish(pivot, result);
    variables_[pivot].clear();
    elements_[pivot].clear();
    int64_t total = 0;
    for (int32_t v : clique) total += weight_[v];

    // |clique of e outside the new one| for every element that touches it.
    for (int32_t i : clique) {
      auto& list = elements_[i];
      size_t kept = 0;
      for (int32_t e : list)
        if (!clique_[e].empty()) list[kept++] = e;
      list.resize(kept);
      for (int32_t e : list) {
        if (stamp_[e] != round) {
          stamp_[e] = round;
          outside_[e] = live_weight(e);
        }
        outside_[e] -= weight_[i];
      }
    }
    std::vector<std::pair<uint64_t, int32_t>> hashes;
    for (int32_t i : clique) {
      auto& vars = variables_[i];
      size_t kept = 0;
      int64_t direct = 0;
      uint64_t hash = 0;
      for (int32_t v : vars)
        if (alive_[v] && mark_[v] != round) {
          vars[kept++] = v;
          direct += weight_[v];
          hash += static_cast<uint64_t>(v) * 2654435761u;
        }
      vars.resize(kept);
      auto& list = elements_[i];
      kept = 0;
      int64_t through = 0;
      for (int32_t e : list)
        if (outside_[e] > 0) {
          list[kept++] = e;
          through += outside_[e];
          hash += static_cast<uint64_t>(e) * 40503u + 17;
        } else if (clique_[e].size()) {
          dead_.push_back(e);
        }
      list.resize(kept);
      if (vars.empty() && list.empty() && stage_[i] == stage_[pivot] && waits_[i] == 0) {  // nothing outside the clique: eliminate it with the pivot
        alive_[i] = 0;
        finish(i, result);
        total -= weight_[i];
        weight_[i] = 0;
        continue;
      }
      list.push_back(pivot);
      int64_t others = total - weight_[i];
      degree_[i] = std::min(std::min(degree_[i] + others, direct + through + others), static_cast<int64_t>(n_) - static_cast<int64_t>(result.size()) - weight_[i]);
      hashes.push_back({hash, i});
    }
    for (int32_t e : dead_) {
      clique_[e].clear();
    }
    dead_.clear();
    merge_equal(hashes);
    for (int32_t i : clique)
      if (alive_[i] && waits_[i] == 0) push(i);
    size_t kept = 0;
    for (int32_t v : clique)
      if (alive_[v]) clique[kept++] = v;
    clique.resize(kept);
  }

  int64_t live_weight(int32_t e) const {
    int64_t w = 0;
    for (int32_t v : clique_[e])
      if (alive_[v]) w += weight_[v];
    return w;
  }

  void finish(int32_t i, std::vector<int32_t>& result) {
    for (int32_t k : members_[i]) {
      result.push_back(k);
      for (int32_t held : holds_[k])
        if (--waits_[held] == 0 && alive_[held]) push(held);
    }
    members_[i].clear();
  }

  // Nodes with equal variables and elements will have equal rows for ever: they are one heavier node from now on.
  void merge_equal(std::vector<std::pair<uint64_t, int32_t>>& hashes) {
    std::sort(hashes.begin(), hashes.end());
    for (size_t a = 0; a < hashes.size(); a++) {
      int32_t i = hashes[a].second;
      if (!alive_[i] || waits_[i] > 0) continue;
      bool sorted = false;
      for (size_t b = a + 1; b < hashes.size() && hashes[b].first == hashes[a].first; b++) {
        int32_t j = hashes[b].second;
        if (!alive_[j] || waits_[j] > 0 || stage_[i] != stage_[j] || variables_[i].size() != variables_[j].size() || elements_[i].size() != elements_[j].size()) continue;
        if (!sorted) {
          sort_lists(i);
          sorted = true;
        }
        sort_lists(j);
        if (variables_[i] != variables_[j] || elements_[i] != elements_[j]) continue;
        weight_[i] += weight_[j];
        degree_[i] -= weight_[j];
        members_[i].insert(members_[i].end(), members_[j].begin(), members_[j].end());
        members_[j].clear();
        variables_[j].clear();
        elements_[j].clear();
        alive_[j] = 0;
        weight_[j] = 0;
      }
    }
  }

  void sort_lists(int32_t i) {
    std::sort(variables_[i].begin(), variables_[i].end());
    std::sort(elements_[i].begin(), elements_[i].end());
  }

  int32_t n_;
  const std::vector<int8_t>& stage_;
  std::vector<std::vector<int32_t>> variables_, elements_, clique_;
  std::vector<int64_t> weight_;
  std::vector<char> alive_;
  std::vector<int64_t> degree_, outside_;
  std::vector<int32_t> stamp_, mark_;
  std::vector<std::vector<int32_t>> members_;
  std::vector<int64_t> score_;
  std::vector<int32_t> waits_;                // neighbours that must go before
  std::vector<std::vector<int32_t>> holds_;  // late nodes that wait for this one
  std::vector<int32_t> dead_;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<Entry>> heap_;
  int64_t age_ = 0;
  int32_t rounds_ = 0;
};

}  // namespace

std::vector<int32_t> minimum_degree(const std::vector<std::vector<int32_t>>& neighbours, const std::vector<int8_t>& stage, const std::vector<int8_t>& late) {
  return QuotientGraph(neighbours, stage, late).order();
}

}  // namespace layercompiler
