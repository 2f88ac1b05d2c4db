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
  // Throws std::invalid_argument, also for PSD cones, which this system does not hold.
  ResidualProgram(const ConicPattern& pattern, const Target* target);
  const NewtonPlan& view() const { return view_; }
  const Symbolic& symbolic() const { return *symbolic_; }
  const Target* target() const { return target_; }

 private:
  const Target* target_;
  NewtonPlan view_{};
  std::unique_ptr<Symbolic> symbolic_;
  std::vector<NewtonCone> cone_;
  std::vector<int32_t> p_row_, p_col_, a_row_, a_col_, x_place_, t_row_, t_place_;
  std::vector<int64_t> p_from_, a_from_, p_slot_, n_slot_, coupling_a_, coupling_t_, coupling_slot_;
};

}  // namespace layercompiler
