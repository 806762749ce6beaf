// C++ exceptions in flight, cleanups, virtual calls with thunks, for single steps:
// some ten thousand instructions and an end.

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#define KEPT __attribute__((noinline, noclone))

static volatile std::uint64_t sink;

struct Left {
    virtual ~Left() = default;
    std::uint64_t left = 1;
};

struct Right {
    virtual ~Right() = default;
    virtual std::uint64_t value(std::uint64_t x) { return x; }
};

struct Both : Left, Right {
    // Called through Right it begins with a thunk.
    KEPT std::uint64_t value(std::uint64_t x) override { return x + left; }
};

struct Cleans {
    explicit Cleans(std::string name) : name(std::move(name)) {}
    KEPT ~Cleans() { sink = sink + name.size(); }
    std::string name;
};

KEPT static std::uint64_t throws(std::uint64_t depth) {
    Cleans cleans(std::string(depth + 20, 'x'));
    if (depth == 0)
        throw std::runtime_error("thrown");
    return throws(depth - 1) + cleans.name.size();
}

KEPT static std::uint64_t catches() {
    try {
        return throws(3);
    } catch (const std::logic_error &) {
        return 1;
    } catch (const std::exception &error) {
        return std::string(error.what()).size();
    }
}

KEPT static std::uint64_t throws_again() {
    try {
        try {
            return throws(1);
        } catch (...) {
            Cleans cleans("again");
            throw;
        }
    } catch (const std::runtime_error &) {
        return 2;
    }
}

int main() {
    std::unique_ptr<Right> right = std::make_unique<Both>();
    std::function<std::uint64_t(std::uint64_t)> through = [&](std::uint64_t x) { return right->value(x); };
    sink = through(3) + catches() + throws_again();
    std::vector<std::string> words{"one", "two", "three"};
    sink = sink + words[2].size();
    return 0;
}
