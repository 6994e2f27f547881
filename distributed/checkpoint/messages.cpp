#include "distributed/checkpoint/messages.h"

#include <google/protobuf/util/json_util.h>

#include <fstream>
#include <sstream>
#include <stdexcept>

#include "core/base/bad_input.h"
#include "core/base/sha256.h"
#include "core/io/atomic_file.h"
#include "distributed/parallel/on_all_ranks.h"
#include "proto/run.pb.h"

namespace flashmorph {

namespace json = google::protobuf::util;

namespace {

bool unseal(const std::string& text, google::protobuf::Message& message) {
  proto::Sealed sealed;
  return sealed.ParseFromString(text) &&
         sealed.sha256() == sha256_of_bytes(sealed.message().data(), sealed.message().size()) &&
         message.ParseFromString(sealed.message());
}

}  // namespace

std::string sealed(const google::protobuf::Message& message) {
  proto::Sealed sealed;
  sealed.set_message(message.SerializeAsString());
  sealed.set_sha256(sha256_of_bytes(sealed.message().data(), sealed.message().size()));
  return sealed.SerializeAsString();
}

void write_message(const std::filesystem::path& file, const google::protobuf::Message& message) {
  std::string content;
  if (file.extension() == ".json") {
    json::JsonPrintOptions options;
    options.add_whitespace = true;
    options.always_print_primitive_fields = true;
    options.preserve_proto_field_names = true;
    const auto status = json::MessageToJsonString(message, &content, options);
    if (!status.ok()) throw std::runtime_error(file.string() + ": " + status.ToString());
  } else {
    content = sealed(message);
  }
  write_file_atomically(file, content);
}

void read_message(const std::filesystem::path& file, google::protobuf::Message& message) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw BadInput(file.string(), "cannot be read");
  std::stringstream content;
  content << in.rdbuf();
  const bool parsed = file.extension() == ".json" ? json::JsonStringToMessage(content.str(), &message).ok()
                                                  : unseal(content.str(), message);
  if (!parsed) throw BadInput(file.string(), "is not a " + message.GetTypeName() + "; it was damaged or edited");
}

void read_on_all_ranks(const std::filesystem::path& file, google::protobuf::Message& message, Communicator& world) {
  on_all_ranks(world, [&] {
    if (world.rank() == 0 && std::filesystem::exists(file)) read_message(file, message);
  });
  message.ParseFromString(world.broadcast_text(message.SerializeAsString(), 0));
}

}  // namespace flashmorph
