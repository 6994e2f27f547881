#pragma once

#include <cstdint>
#include <initializer_list>

namespace flashmorph {

// A random stream that is a pure function of its key, e.g. {seed, stage, sample}: any rank can make any sample, in any
// order, on any platform (splitmix64; the standard library's distributions differ between implementations).
class KeyedRandom {
 public:
  explicit KeyedRandom(std::initializer_list<uint64_t> key) {
    for (uint64_t part : key) state_ = mix(state_ ^ mix(part + kIncrement));
  }

  uint64_t next() { return mix(state_ += kIncrement); }

  // Uniform in [0, bound), bound > 0; unbiased (Lemire's multiply and reject).
  uint64_t below(uint64_t bound) {
    __extension__ using Wide = unsigned __int128;
    Wide product = static_cast<Wide>(next()) * bound;
    if (static_cast<uint64_t>(product) < bound) {
      const uint64_t reject_under = -bound % bound;
      while (static_cast<uint64_t>(product) < reject_under) product = static_cast<Wide>(next()) * bound;
    }
    return static_cast<uint64_t>(product >> 64);
  }

  // Uniform in [0, 1).
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  static constexpr uint64_t kIncrement = 0x9e3779b97f4a7c15;

  static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  uint64_t state_ = 0;
};

}  // namespace flashmorph
