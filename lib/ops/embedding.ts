import { check } from "../errors.js";
import { alias, empty, launch, record, sameDevice, type Tensor } from "../tensor/index.js";

/**
 * Rows of a table: table (V, …), index i32 (any shape) to (...index, …). Indices must lie in [0, V): the caller checks,
 * since they are on the device.
 */
export function gatherRows(table: Tensor, index: Tensor): Tensor {
  check(index.dtype === "i32", "dtype_mismatch", () => `[gather_rows] index must be i32, got ${index.dtype}`);
  sameDevice("gather_rows", table, index);
  const [rows, ...rest] = table.shape;
  const width = rows ? table.size / rows : 0;
  const y = empty([...index.shape, ...rest], { dtype: table.dtype, device: table.device });
  launch("gather_rows", [alias(table, [rows, width]), alias(index, [index.size]), alias(y, [index.size, width])]);
  return record("gather_rows", y, [table], [index], (grad) => {
    const dtable = empty(table.shape, { device: table.device });
    launch("scatter_rows", [alias(grad, [index.size, width]), alias(index, [index.size]), alias(dtable, [rows, width])]);
    return [dtable];
  });
}
