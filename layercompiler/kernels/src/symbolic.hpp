// The symbolic phase: everything about K = L D L' that depends on the pattern, made once.
#pragma once
#include <cstdint>
#include <vector>

#include "shared.hpp"

namespace layercompiler {

class Symbolic {
 public:
  // Upper-triangle pattern (rows[k] <= columns[k], repeats are summed; the diagonal is added), the expected pivot signs, and
  // (null for none) which unknowns are eliminated only after their neighbours. Throws std::invalid_argument.
  Symbolic(int64_t n, int64_t count, const int64_t* rows, const int64_t* columns, const int8_t* signs, const int8_t* late = nullptr);

  const Schedule& schedule() const { return view_; }
  int64_t factor_entries() const { return factor_entries_; }
  int64_t flops() const { return flops_; }
  // Place of the entry (row, column) of the upper triangle in the caller's order, -1 if it is not in the pattern.
  int64_t find(int32_t row, int32_t column) const;

 private:
  struct Tree;
  struct Node {
    int32_t first, last;
    int64_t entries;
    bool separable;
    int32_t privates;
  };
  // Subtrees of one shape beneath one parent, taken together: `size` nodes of `width` columns from `first` on.
  struct Bundle {
    int32_t first, width, size;
  };
  void choose_order(const std::vector<std::vector<int32_t>>& neighbours, const int8_t* signs, const int8_t* late);
  std::vector<Node> group(const Tree& tree, const std::vector<Bundle>& bundles) const;
  std::vector<Bundle> bundle(const Tree& tree);
  void lay_out(const Tree& tree, const std::vector<Node>& nodes);
  void plan_updates();
  void place_entries(int64_t count, const int64_t* rows, const int64_t* columns);
  void publish();

  int32_t n_ = 0;
  int64_t inputs_ = 0, factor_entries_ = 0, flops_ = 0;
  std::vector<int32_t> perm_, position_, start_, privates_, rowptr_, rows_, updptr_, relative_, colptr_, rowind_, owner_;
  std::vector<uint8_t> separable_;
  std::vector<int64_t> offset_, target_, slot_;
  std::vector<Update> updates_;
  std::vector<double> sign_;
  Schedule view_{};
};

}  // namespace layercompiler
