#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

struct pcre2_real_code_8;

namespace flashmorph {

// What becomes of a match among the pieces.
enum class MatchBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

// A pattern that cuts text, as a Split pre-tokenizer does: into its matches and the stretches between them, joined or
// dropped by `behavior`; with `inverts` the stretches between count as the matches. Run by PCRE2, which can say that a
// match might be another one if more text followed: so a text is split part by part.
class SplitPattern {
 public:
  // BadInput naming `where` for a pattern that does not compile. It must not look back.
  SplitPattern(const std::string& pcre2, MatchBehavior behavior, bool inverts, std::string where);

  // Appends the pieces of valid UTF-8 in order, none empty. When more text follows (`ends` is false) only those that it
  // cannot change. Returns the bytes that are done with.
  size_t split(std::string_view text, bool ends, std::vector<std::string_view>& pieces) const;

  std::string replaced(const std::string& text, const std::string& content) const;  // each match by `content`

 private:
  struct Segment {
    size_t begin, end;
    bool match;
  };
  std::vector<Segment> segments_of(std::string_view text, bool ends) const;
  size_t final_segments(const std::vector<Segment>& segments) const;
  bool joins(const Segment& before, const Segment& segment) const;

  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  MatchBehavior behavior_;
  bool inverts_;
  std::string where_;
  std::unique_ptr<pcre2_real_code_8, Free> code_;
};

std::string literal_pattern(std::string_view text);  // the PCRE2 pattern that matches valid UTF-8 alone

}  // namespace flashmorph
