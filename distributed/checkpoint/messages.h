#pragma once

#include <google/protobuf/message.h>

#include <filesystem>

namespace flashmorph {

// Protobuf messages on disk, written atomically: binary (.pb) or in protobuf's JSON form (.json), by the file's name.
void write_message(const std::filesystem::path& file, const google::protobuf::Message& message);

// BadInput when the file cannot be read or is not such a message.
void read_message(const std::filesystem::path& file, google::protobuf::Message& message);

}  // namespace flashmorph
