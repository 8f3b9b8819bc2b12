"""The readers run under the Pythons of the tools, and are no modules of ours."""

collect_ignore_glob = ["readers/*"]
