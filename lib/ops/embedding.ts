import { check } from "../errors.js";
import { checkFloats, checkOperands, empty, launch, record, type Tensor } from "../tensor/index.js";

/**
 * Rows of a table: table (V, …), index i32 (any shape) to (...index, …). Indices are on the device, so one outside of
 * [0, V) is an error when the rows, or what is made of them, are read.
 */
export function gatherRows(table: Tensor, index: Tensor): Tensor {
  checkOperands("gather_rows", { table, index });
  checkFloats("gather_rows", { table });
  check(table.dims > 0, "shape_mismatch", () => `[gather_rows] expects a table (V,…), got [${table.shape}]`);
  check(index.dtype === "i32", "dtype_mismatch", () => `[gather_rows] index must be i32, got ${index.dtype}`);
  const [rows, ...rest] = table.shape;
  check(rows > 0 || index.size === 0, "shape_mismatch", () => {
    return `[gather_rows] the table [${table.shape}] has no rows for the ${index.size} indices`;
  });
  const width = rows ? table.size / rows : 0;
  const y = empty([...index.shape, ...rest], { dtype: table.dtype, device: table.device });
  launch("gather_rows", [
    [table, [rows, width]],
    [index, [index.size]],
    [y, [index.size, width]],
  ]);
  return record("gather_rows", y, [table], [index], (grad) => {
    const dtable = empty(table.shape, { device: table.device });
    launch("scatter_rows", [
      [grad, [index.size, width]],
      [index, [index.size]],
      [dtable, [rows, width]],
    ]);
    return [dtable];
  });
}
