// Nothing thrown may pass a C function: what was thrown becomes a message.
#pragma once
#include <exception>
#include <string>

namespace vision_mamba {

// Runs `body`; null when all went well, else what went wrong, which stays until this thread's next failure.
template <class Body>
const char* caught(const Body& body) noexcept {
  thread_local std::string message;
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
  } catch (...) {
    message = "an unknown error";
  }
  // libtorch adds its call stack
  message = message.substr(0, message.find('\n'));
  return message.c_str();
}

}  // namespace vision_mamba
