// Fill-reducing orderings of symmetric patterns.
#pragma once
#include <cstdint>
#include <vector>

namespace layercompiler {

enum class Metric { degree, fill };

// Minimum degree on the quotient graph (approximate external degree, element absorption, mass elimination, indistinguishable nodes merged); `Metric::fill`
// prefers the node whose elimination adds the fewest entries. Source: Amestoy, Davis, Duff 1996; Rothberg, Eisenstat 1998.
// `neighbours[i]` holds every j != i joined with i, without repeats. Returns order[k] = node eliminated k-th.
std::vector<int32_t> minimum_degree(const std::vector<std::vector<int32_t>>& neighbours, Metric metric);

}  // namespace layercompiler
