// Reads numpy's .npy files, as golden.npz holds them: little-endian, in C order.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Npy {
    std::string type;  // as numpy writes it: "<f4" is float32, "|i1" int8
    std::vector<int64_t> shape;
    std::vector<char> data;

    size_t samples() const { return shape.empty() ? 0 : shape[0]; }
    size_t sample_bytes() const { return samples() == 0 ? 0 : data.size() / samples(); }
};

inline Npy read_npy(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    const std::string content{std::istreambuf_iterator<char>(file), {}};
    const auto fail = [&](const char* why) { return std::runtime_error(path + ": " + why); };
    if (!file) throw fail("cannot be read");
    if (content.size() < 12 || content.compare(0, 6, "\x93NUMPY") != 0) throw fail("is no .npy file");

    // Behind the version stands the length of the header, in two bytes or, from version 2 on, in four.
    const size_t bytes = content[6] == 1 ? 2 : 4;
    size_t length = 0;
    for (size_t i = 0; i < bytes; ++i) length |= size_t(uint8_t(content[8 + i])) << (8 * i);
    const size_t begin = 8 + bytes;
    if (begin + length > content.size()) throw fail("is cut short");
    if (length > 1024) throw fail("has a header that no array of numbers needs");  // and std::regex recurses by letter

    const std::string header = content.substr(begin, length);
    std::smatch found;
    static const std::regex fields("'descr': '([<|]\\w\\d+)', 'fortran_order': False, 'shape': \\(([\\d, ]*)\\)");
    if (!std::regex_search(header, found, fields)) throw fail("is not little-endian numbers in C order");

    Npy array{found[1], {}, {content.begin() + begin + length, content.end()}};
    size_t expected = std::strtoul(array.type.c_str() + 2, nullptr, 10);
    std::istringstream shape(found[2]);
    for (std::string size; std::getline(shape, size, ',');)
        if (size.find_first_not_of(' ') != std::string::npos) {
            array.shape.push_back(std::stoll(size));
            expected *= array.shape.back();
            if (expected > content.size()) throw fail("is cut short");
        }
    if (array.data.size() != expected) throw fail("holds another number of bytes than its header says");
    return array;
}
