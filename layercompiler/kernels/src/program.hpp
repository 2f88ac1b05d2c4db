// The structure of a conic program: checked, its KKT matrix laid out and analysed once.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "shared.hpp"
#include "symbolic.hpp"

namespace layercompiler {

// As it comes from Python. `sizes`: rows of a second-order cone, order of a PSD cone; ignored for exponential and power cones.
struct ConicPattern {
  int64_t n, m, p_count;
  const int64_t *p_rows, *p_cols;
  int64_t a_count;
  const int64_t *a_rows, *a_cols;
  int64_t zero, nonnegative, cones;
  const int32_t* kinds;
  const int64_t* sizes;
  const double* alphas;
};

class ConicProgram {
 public:
  // Throws std::invalid_argument. Without `analyse` only the pattern is checked and sorted.
  ConicProgram(const ConicPattern& pattern, const Target* target, bool analyse = true);
  const Program& view() const { return view_; }
  const Symbolic& symbolic() const { return *symbolic_; }
  int64_t flops() const;  // of a factorisation and the blocks of owned cones
  const Target* target() const { return target_; }

 private:
  void check_and_lay_cones(const ConicPattern& pattern);
  static void sort_by_columns(int64_t count, const int64_t* rows, const int64_t* cols, int64_t row_limit, int64_t col_limit, bool upper, const char* name,
                              std::vector<int32_t>& row, std::vector<int32_t>& col, std::vector<int64_t>& from);
  void find_owners();
  void assemble();
  void publish();

  const Target* target_;
  Program view_{};
  std::unique_ptr<Symbolic> symbolic_;
  std::vector<Cone> cone_;
  std::vector<Owner> owner_;
  std::vector<int32_t> p_row_, p_col_, a_row_, a_col_, x_place_, row_place_, fold_row_, fold_col_, extra_place_, own_col_, touch_row_;
  std::vector<int64_t> p_from_, a_from_, p_slot_, a_slot_, row_slot_, variable_slot_, fold_entry_, slots_, own_entry_, touch_start_, touch_own_, touch_entry_;
};

}  // namespace layercompiler
