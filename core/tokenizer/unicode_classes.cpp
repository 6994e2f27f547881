#include "core/tokenizer/unicode_classes.h"

#include <map>

namespace flashmorph {
namespace {

// What Unicode 15 and 16 added to each general category since 14. The marks are together: one moved between their
// kinds.
const std::map<std::string, std::string, std::less<>>& additions() {
  static const std::map<std::string, std::string, std::less<>> added = {
      {"Lu", R"(\x{1C89}\x{A7CB}-\x{A7CC}\x{A7DA}\x{A7DC}\x{10D50}-\x{10D65})"},
      {"Ll", R"(\x{1C8A}\x{A7CD}\x{A7DB}\x{10D70}-\x{10D85}\x{1DF25}-\x{1DF2A})"},
      {"Lt", ""},
      {"Lm", R"(\x{10D4E}\x{10D6F}\x{16D40}-\x{16D42}\x{16D6B}-\x{16D6C}\x{1E030}-\x{1E06D}\x{1E4EB})"},
      {"Lo", R"(\x{105C0}-\x{105F3}\x{10D4A}-\x{10D4D}\x{10D4F}\x{10EC2}-\x{10EC4}\x{1123F}-\x{11240})"
             R"(\x{11380}-\x{11389}\x{1138B}\x{1138E}\x{11390}-\x{113B5}\x{113B7}\x{113D1}\x{113D3})"
             R"(\x{11BC0}-\x{11BE0}\x{11F02}\x{11F04}-\x{11F10}\x{11F12}-\x{11F33}\x{1342F}\x{13441}-\x{13446})"
             R"(\x{13460}-\x{143FA}\x{16100}-\x{1611D}\x{16D43}-\x{16D6A}\x{18CFF}\x{1B132}\x{1B155})"
             R"(\x{1E4D0}-\x{1E4EA}\x{1E5D0}-\x{1E5ED}\x{1E5F0}\x{2B739}\x{2EBF0}-\x{2EE5D}\x{31350}-\x{323AF})"},
      {"Me", ""},
      {"Nd", R"(\x{10D40}-\x{10D49}\x{116D0}-\x{116E3}\x{11BF0}-\x{11BF9}\x{11F50}-\x{11F59}\x{16130}-\x{16139})"
             R"(\x{16D70}-\x{16D79}\x{1CCF0}-\x{1CCF9}\x{1E4F0}-\x{1E4F9}\x{1E5F1}-\x{1E5FA})"},
      {"Nl", ""},
      {"No", R"(\x{1D2C0}-\x{1D2D3})"},
      {"Pc", ""},
      {"Pd", R"(\x{10D6E})"},
      {"Ps", ""},
      {"Pe", ""},
      {"Pi", ""},
      {"Pf", ""},
      {"Po", R"(\x{1B4E}-\x{1B4F}\x{1B7F}\x{113D4}-\x{113D5}\x{113D7}-\x{113D8}\x{11B00}-\x{11B09}\x{11BE1})"
             R"(\x{11F43}-\x{11F4F}\x{16D6D}-\x{16D6F}\x{1E5FF})"},
      {"Sm", R"(\x{10D8E}-\x{10D8F})"},
      {"Sc", ""},
      {"Sk", ""},
      {"So", R"(\x{2427}-\x{2429}\x{2FFC}-\x{2FFF}\x{31E4}-\x{31E5}\x{31EF}\x{1CC00}-\x{1CCEF}\x{1CD00}-\x{1CEB3})"
             R"(\x{1F6DC}\x{1F774}-\x{1F776}\x{1F77B}-\x{1F77F}\x{1F7D9}\x{1F8B2}-\x{1F8BB}\x{1F8C0}-\x{1F8C1})"
             R"(\x{1FA75}-\x{1FA77}\x{1FA87}-\x{1FA89}\x{1FA8F}\x{1FAAD}-\x{1FAAF}\x{1FABB}-\x{1FABF}\x{1FAC6})"
             R"(\x{1FACE}-\x{1FACF}\x{1FADA}-\x{1FADC}\x{1FADF}\x{1FAE8}-\x{1FAE9}\x{1FAF7}-\x{1FAF8})"
             R"(\x{1FBCB}-\x{1FBEF})"},
      {"Zs", ""},
      {"Zl", ""},
      {"Zp", ""},
      {"Cc", ""},
      {"Cf", R"(\x{13439}-\x{1343F})"},
      {"Co", ""},
      {"M", R"(\x{897}\x{ECE}\x{10D69}-\x{10D6D}\x{10EFC}-\x{10EFF}\x{11241}\x{113BB}-\x{113C0}\x{113CE}\x{113D0})"
            R"(\x{113D2}\x{113E1}-\x{113E2}\x{11F00}-\x{11F01}\x{11F36}-\x{11F3A}\x{11F40}\x{11F42}\x{11F5A})"
            R"(\x{13440}\x{13447}-\x{13455}\x{1611E}-\x{16129}\x{1612D}-\x{1612F}\x{1E08F}\x{1E4EC}-\x{1E4EF})"
            R"(\x{1E5EE}-\x{1E5EF}\x{CF3}\x{113B8}-\x{113BA}\x{113C2}\x{113C5}\x{113C7}-\x{113CA})"
            R"(\x{113CC}-\x{113CD}\x{113CF}\x{11F03}\x{11F34}-\x{11F35}\x{11F3E}-\x{11F3F}\x{11F41})"
            R"(\x{1612A}-\x{1612C})"}};
  return added;
}

// Punctuation that Unicode gained after version 8, by which the package's Punctuation goes.
constexpr const char* kNewerPunctuation =
    R"(\x{61D}\x{9FD}\x{A76}\x{C77}\x{C84}\x{1B4E}-\x{1B4F}\x{1B7D}-\x{1B7F}\x{2E43}-\x{2E4F})"
    R"(\x{2E52}-\x{2E5D}\x{10D6E}\x{10EAD}\x{10F55}-\x{10F59}\x{10F86}-\x{10F89}\x{113D4}-\x{113D5})"
    R"(\x{113D7}-\x{113D8}\x{1144B}-\x{1144F}\x{1145A}-\x{1145B}\x{1145D}\x{11660}-\x{1166C}\x{116B9})"
    R"(\x{1183B}\x{11944}-\x{11946}\x{119E2}\x{11A3F}-\x{11A46}\x{11A9A}-\x{11A9C}\x{11A9E}-\x{11AA2})"
    R"(\x{11B00}-\x{11B09}\x{11BE1}\x{11C41}-\x{11C45}\x{11C70}-\x{11C71}\x{11EF7}-\x{11EF8})"
    R"(\x{11F43}-\x{11F4F}\x{11FFF}\x{12FF1}-\x{12FF2}\x{16D6D}-\x{16D6F}\x{16E97}-\x{16E9A}\x{16FE2})"
    R"(\x{1E5FF}\x{1E95E}-\x{1E95F})";

// Marks that Unicode gained after the version that the package's StripAccents goes by.
constexpr const char* kNewerMarks =
    R"(\x{7FD}\x{898}-\x{89F}\x{8CA}-\x{8D3}\x{9FE}\x{AFA}-\x{AFF}\x{B55}\x{C04}\x{C3C}\x{D00}\x{D3B}-\x{D3C})"
    R"(\x{D81}\x{EBA}\x{1715}\x{180F}\x{1ABF}-\x{1ACE}\x{1CF7}\x{1DF6}-\x{1DFA}\x{A82C}\x{A8FF})"
    R"(\x{10D24}-\x{10D27}\x{10EAB}-\x{10EAC}\x{10F46}-\x{10F50}\x{10F82}-\x{10F85}\x{11070}-\x{11074})"
    R"(\x{110C2}\x{11145}-\x{11146}\x{111C9}\x{111CE}-\x{111CF}\x{1133B}\x{1145E}\x{1182C}-\x{1183A})"
    R"(\x{11930}-\x{11943}\x{119D1}-\x{119E4}\x{11A01}-\x{11A0A}\x{11A33}-\x{11A3E}\x{11A47})"
    R"(\x{11A51}-\x{11A5B}\x{11A8A}-\x{11A99}\x{11D31}-\x{11D47}\x{11D8A}-\x{11D97}\x{11EF3}-\x{11EF6})"
    R"(\x{16F4F}\x{16F7F}-\x{16F87}\x{16FE4}\x{16FF0}-\x{16FF1}\x{1CF00}-\x{1CF46}\x{1E130}-\x{1E136}\x{1E2AE})"
    R"(\x{1E2EC}-\x{1E2EF})";

}  // namespace

std::optional<std::string> class_of_category(std::string_view name) {
  std::string content = "\\p{" + std::string(name) + "}";
  bool known = false;
  for (const auto& [category, characters] : additions()) {
    if (category != name && !(name.size() == 1 && name != "C" && category.starts_with(name))) continue;
    content += characters;
    known = true;
  }
  return known ? std::optional(content) : std::nullopt;
}

std::string numeric_class() {  // with the numbers of Unicode 17
  return "[" + *class_of_category("N") + R"(\x{11DE0}-\x{11DE9}\x{16FF4}-\x{16FF6}])";
}

std::string punctuation_class() {
  return "(?![" + std::string(kNewerPunctuation) + "])[" + *class_of_category("P") + R"($+<=>^`|~\x{166D}\x{111C9}])";
}

std::string accent_class() {
  return "(?![" + std::string(kNewerMarks) + additions().find("M")->second + R"(])[\p{M}\x{1CF2}-\x{1CF3}])";
}

std::string word_class_content() {  // Alphabetic, M, Nd, Pc and Join_Control
  return *class_of_category("L") + *class_of_category("M") + *class_of_category("Nd") + *class_of_category("Nl") +
         *class_of_category("Pc") +
         R"(\x{200C}\x{200D}\x{24B6}-\x{24E9}\x{1F130}-\x{1F149}\x{1F150}-\x{1F169}\x{1F170}-\x{1F189})";
}

}  // namespace flashmorph
