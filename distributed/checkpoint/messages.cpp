#include "distributed/checkpoint/messages.h"

#include <google/protobuf/util/json_util.h>

#include <fstream>
#include <sstream>
#include <stdexcept>

#include "core/base/bad_input.h"
#include "core/io/atomic_file.h"
#include "distributed/parallel/together.h"

namespace flashmorph {

namespace json = google::protobuf::util;

void write_message(const std::filesystem::path& file, const google::protobuf::Message& message) {
  std::string content;
  if (file.extension() == ".json") {
    json::JsonPrintOptions options;
    options.add_whitespace = true;
    options.always_print_primitive_fields = true;
    options.preserve_proto_field_names = true;
    const auto status = json::MessageToJsonString(message, &content, options);
    if (!status.ok()) throw std::runtime_error(file.string() + ": " + status.ToString());
  } else if (!message.SerializeToString(&content)) {
    throw std::runtime_error(file.string() + ": the message cannot be serialised");
  }
  write_file_atomically(file, content);
}

void read_message(const std::filesystem::path& file, google::protobuf::Message& message) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw BadInput(file.string(), "cannot be read");
  std::stringstream content;
  content << in.rdbuf();
  const std::string text = content.str();
  const bool parsed = !text.empty() && (file.extension() == ".json" ? json::JsonStringToMessage(text, &message).ok()
                                                                    : message.ParseFromString(text));
  if (!parsed) throw BadInput(file.string(), "is not a " + message.GetTypeName() + "; it was damaged or edited");
}

void read_on_all_ranks(const std::filesystem::path& file, google::protobuf::Message& message, Communicator& world) {
  together(world, [&] {
    if (world.rank() == 0 && std::filesystem::exists(file)) read_message(file, message);
  });
  message.ParseFromString(world.broadcast_text(message.SerializeAsString(), 0));
}

}  // namespace flashmorph
