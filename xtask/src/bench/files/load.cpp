// Templates for the compiler.
#include <algorithm>
#include <functional>
#include <iostream>
#include <map>
#include <regex>
#include <string>
#include <unordered_map>
#include <vector>

int main() {
    const std::regex pattern("a+b*(c|d)");
    const std::string text = "aaabd";
    std::smatch found;
    std::regex_match(text, found, pattern);
    std::map<std::string, std::vector<int>> groups;
    for (const auto &group : found)
        groups[group.str()].push_back(1);
    std::function<int(int)> fib = [&](int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); };
    std::unordered_map<std::string, std::function<int(int)>> functions{{"fib", fib}};
    std::cout << functions["fib"](5) << groups.size() << '\n';
}
