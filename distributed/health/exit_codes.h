#pragma once

namespace flashmorph {

// What the program exits with, beside 0; docs/operations.md says what each asks for.
inline constexpr int kBadInput = 2;
inline constexpr int kFailed = 3;         // a rank failed
inline constexpr int kHung = 4;           // a deadline passed
inline constexpr int kStoppedEarly = 75;  // the same command goes on

}  // namespace flashmorph
