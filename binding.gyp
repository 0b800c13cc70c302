# node-gyp's way in: it runs the one CMake build. The output never exists, so CMake decides what is stale.
{
  "targets": [
    {
      "target_name": "ltx_native",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": [],
          "outputs": ["<(INTERMEDIATE_DIR)/always"],
          "action": ["node", "scripts/gyp-as-cmake.cjs", "build"]
        }
      ]
    }
  ]
}
