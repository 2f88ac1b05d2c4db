// Fill-reducing orderings of symmetric patterns.
#pragma once
#include <cstdint>
#include <vector>

namespace layercompiler {

// Minimum degree on the quotient graph (approximate external degree, element absorption, mass elimination, indistinguishable nodes merged). Nodes of a
// smaller `stage` go first; a `late` node goes after all its neighbours that are not late. Source: Amestoy, Davis, Duff 1996.
// `neighbours[i]` holds every j != i joined with i, without repeats. Returns order[k] = node eliminated k-th.
std::vector<int32_t> minimum_degree(const std::vector<std::vector<int32_t>>& neighbours, const std::vector<int8_t>& stage, const std::vector<int8_t>& late);

}  // namespace layercompiler
