/* The library that host.c loads late. */

#include "work.h"

LEAF(plugin_leaf)
LINK(plugin_middle, plugin_leaf)
LINK(plugin_entry, plugin_middle)
