#pragma once

// Small steps on the codebook of one row, shared by the solvers.

#include <cstdint>
#include <span>
#include <vector>

namespace gradq {

// Columns bucket by bucket: codeword q's columns are order[begin[q]] .. order[begin[q + 1] - 1],
// rising.
void SortByCode(std::span<const uint8_t> codes, int levels, std::vector<int32_t>* order,
                std::vector<int32_t>* begin);

// centers += −(G + λI)⁻¹ · slope with G = PᵀHP [levels, levels] and slope = PᵀH(P·centers − w): the
// minimum of δᵀHδ over the codebook (GuidedQuant, codebook step) as a correction of the current
// one, so that the ridge λ, a small share of G's mean diagonal, pulls towards it and codewords
// without weights keep their place. `gram` is overwritten.
void CorrectCodebook(std::span<double> gram, std::span<const double> slope,
                     std::span<double> centers);

// Index of the codeword nearest to each weight, the lower one on a tie. `table` ascending.
void AssignNearest(std::span<const float> weights, std::span<const float> table,
                   std::span<uint8_t> codes);

// Table and codes as FORMAT.md stores them: codewords that no column uses are dropped, equal ones
// merged, the rest ascending, the tail repeating the largest. `table` ascending, values that fp16
// holds exactly.
void StoreRow(std::span<const float> table, std::span<const uint8_t> codes,
              std::span<uint16_t> stored_table, std::span<uint8_t> stored_codes);

}  // namespace gradq
