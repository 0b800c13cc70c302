/** What a reader of files has to say about them. */
export type OnNotice = (message: string) => void;

/** Where nobody listens, Node's own channel for warnings: standard error, unless the program takes them. */
export const warn: OnNotice = (message) => process.emitWarning(message, "LtxWarning");
