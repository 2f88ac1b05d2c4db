// Tapes as machine code, where the processor has AVX-512 and the system lets a process write code: an interpreter spends most of its time on deciding what
// to do next, and on registers that lie in memory.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "tape_plan.hpp"

namespace layercompiler {

// A program for one vector (8 lanes) at a time. Its memory, in vectors: constants, inputs by slot, outputs by slot, its own, and last 1.0, the sign bits, and
// all bits but those.
struct Machine {
  void (*run)(void* memory) = nullptr;
  size_t bytes = 0;
  int64_t vectors = 0;
  ~Machine();
};

// Null where the tape cannot be made code of. What has no instruction is called.
std::unique_ptr<Machine> assemble(const TapeView& tape, const TapeHelper* helpers);

}  // namespace layercompiler
