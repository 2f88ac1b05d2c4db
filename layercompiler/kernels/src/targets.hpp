// The instruction sets compiled into this library, best first.
#pragma once
#include "shared.hpp"

namespace layercompiler {

// By name, or the best one this machine runs when `name` is null or empty; null if there is none of that name.
const Target* find_target(const char* name);

}  // namespace layercompiler
