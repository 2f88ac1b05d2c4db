// The structure of the residual map's linear system, laid out and analysed once.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "program.hpp"
#include "shared.hpp"
#include "symbolic.hpp"

namespace layercompiler {

class ResidualProgram {
 public:
  // `turns`: per cone that is not a product of rays whether its variables turn (PSD), or null. Throws std::invalid_argument.
  ResidualProgram(const ConicPattern& pattern, const int8_t* turns, const Target* target);
  const NewtonPlan& view() const { return view_; }
  const Symbolic& symbolic() const { return *symbolic_; }
  const Target* target() const { return target_; }

 private:
  struct Entry {
    int32_t row, col;
    int64_t from;
  };
  void turn_variables(const Program& c, int32_t at, std::vector<Entry>& list, std::vector<int8_t>& taken);
  void turn_rows(const Program& c, int32_t at, std::vector<Entry>& list);
  int64_t reserve(size_t vectors, int32_t dim);

  const Target* target_;
  NewtonPlan view_{};
  std::unique_ptr<Symbolic> symbolic_;
  std::vector<NewtonCone> cone_;
  std::vector<int32_t> p_row_, p_col_, a_row_, a_col_, x_place_, t_row_, t_place_;
  std::vector<int64_t> p_from_, a_from_, p_slot_, n_slot_, coupling_a_, coupling_t_, coupling_slot_, gather_from_, own_entry_, own_p_;
  std::vector<Turn> turn_;
  std::vector<int32_t> cone_of_, gather_vector_, gather_position_, own_col_;
};

}  // namespace layercompiler
