/**
 * Writes dist/signatures.json: what TypeScript knows of the arguments of every exported function, constructor and method,
 * for lib/guard.ts to check when a program in JavaScript calls them. Part of `npm run build:ts`.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import ts from "typescript";
import type { Parameter, Signature, Signatures, Spec } from "../lib/guard.js";

/** Their functions check every argument themselves: what types do not say counts there, and calls are many. */
const UNGUARDED = new Set(["ops", "Device", "Tensor"]);

const dist = join(__dirname, "..", "dist");

class Reader {
  /** Object types by the number that other types name them by: they may contain themselves. */
  readonly table: Spec[] = [];
  private readonly numbers = new Map<ts.Type, number>();

  constructor(
    private readonly checker: ts.TypeChecker,
    private readonly at: ts.Node,
  ) {}

  parameters(signature: ts.Signature): Parameter[] {
    return signature.parameters.map((symbol) => {
      const declaration = symbol.valueDeclaration as ts.ParameterDeclaration | undefined;
      const name = symbol.name.startsWith("__") ? "options" : symbol.name.replace(/^_/, "");
      const type = this.checker.getTypeOfSymbolAtLocation(symbol, this.at);
      if (declaration?.dotDotDotToken) {
        const [item] = this.checker.getTypeArguments(type as ts.TypeReference);
        return { name, rest: true, spec: item ? this.spec(item) : "any" };
      }
      const optional = declaration?.questionToken !== undefined || declaration?.initializer !== undefined;
      return { name, ...(optional && { optional }), spec: this.spec(type) };
    });
  }

  /** Of a function with overloads: each of them is right. */
  signature(signatures: readonly ts.Signature[]): Signature | undefined {
    if (signatures.every(({ parameters }) => parameters.length === 0)) return undefined;
    const result = signatures[0].getReturnType().symbol?.name;
    const fails = result === "Promise" ? "rejects" : result === "AsyncGenerator" ? "yields" : "throws";
    return { fails, overloads: signatures.map((one) => this.parameters(one)) };
  }

  private spec(type: ts.Type): Spec {
    const { flags } = type;
    if (flags & ts.TypeFlags.TypeParameter) {
      const bound = type.getConstraint();
      return bound ? this.spec(bound) : "any";
    }
    if (flags & ts.TypeFlags.StringLiteral) return { literal: (type as ts.StringLiteralType).value };
    if (flags & ts.TypeFlags.NumberLiteral) return { literal: (type as ts.NumberLiteralType).value };
    if (flags & ts.TypeFlags.BooleanLiteral) return { literal: this.checker.typeToString(type) === "true" };
    if (flags & ts.TypeFlags.StringLike) return "string";
    if (flags & ts.TypeFlags.NumberLike) return "number";
    if (flags & ts.TypeFlags.BooleanLike && !type.isUnion()) return "boolean";
    if (flags & (ts.TypeFlags.Undefined | ts.TypeFlags.Void)) return "undefined";
    if (flags & ts.TypeFlags.Null) return "null";
    if (type.isUnion()) return this.union(type.types.map((part) => this.spec(part)));
    if (type.isIntersection() && type.types.some((part) => part.flags & ts.TypeFlags.String)) return "string";
    if (flags & (ts.TypeFlags.Object | ts.TypeFlags.Intersection)) return this.object(type as ts.ObjectType);
    return "any";
  }

  private union(parts: Spec[]): Spec {
    if (parts.includes("any")) return "any";
    const seen = new Map(parts.map((part) => [JSON.stringify(part), part]));
    const both = [true, false].map((literal) => JSON.stringify({ literal }));
    if (both.every((key) => seen.delete(key))) seen.set("boolean", "boolean");
    const different = [...seen.values()];
    return different.length === 1 ? different[0] : { any: different };
  }

  private object(type: ts.ObjectType): Spec {
    if (type.getCallSignatures().length + type.getConstructSignatures().length > 0) return "function";
    if (this.checker.isTupleType(type)) {
      const { minLength } = (type as ts.TupleTypeReference).target;
      const items = this.checker.getTypeArguments(type as ts.TypeReference);
      return { tuple: items.map((item) => this.spec(item)), least: minLength };
    }
    if (this.checker.isArrayType(type)) {
      return { array: this.spec(this.checker.getTypeArguments(type as ts.TypeReference)[0]) };
    }
    const symbol = type.symbol as ts.Symbol | undefined;
    if (symbol && /^(Readonly)?Map$/.test(symbol.name)) {
      const [key, item] = this.checker.getTypeArguments(type as ts.TypeReference);
      return { map: this.spec(item), key: this.spec(key) };
    }
    const file = symbol?.declarations?.[0]?.getSourceFile().fileName ?? "";
    if (
      symbol &&
      !file.startsWith(dist) &&
      !(symbol.flags & (ts.SymbolFlags.TypeLiteral | ts.SymbolFlags.ObjectLiteral))
    ) {
      const name = symbol.name.replace(/^Readonly(?=Set)/, "");
      return /^(Iterable|AsyncIterable|ArrayLike|Readable.*|Writable.*|PromiseLike)$/.test(name)
        ? "any"
        : { instance: name };
    }
    if (symbol && symbol.flags & ts.SymbolFlags.Class) return { instance: symbol.name };
    const known = this.numbers.get(type);
    if (known !== undefined) return { type: known };
    const number = this.table.push("any") - 1;
    this.numbers.set(type, number);
    const index = this.checker.getIndexInfosOfType(type)[0];
    const fields = this.checker.getPropertiesOfType(type).map((property): [string, Spec] => {
      const spec = this.spec(this.checker.getTypeOfSymbolAtLocation(property, this.at));
      const optional = (property.flags & ts.SymbolFlags.Optional) !== 0;
      return [property.name, optional ? this.union([spec, "undefined"]) : spec];
    });
    this.table[number] = { fields: Object.fromEntries(fields), ...(index && { values: this.spec(index.type) }) };
    return { type: number };
  }
}

/** Whether its constructor is not part of the API. */
function isMadeOtherwise(symbol: ts.Symbol): boolean {
  const declared = symbol.valueDeclaration as ts.ClassDeclaration | undefined;
  const own = declared?.members.find((member) => ts.isConstructorDeclaration(member));
  if (!own) return false;
  const internal = ts.getJSDocTags(own).some(({ tagName }) => tagName.text === "internal");
  return internal || (ts.getCombinedModifierFlags(own) & ts.ModifierFlags.Private) !== 0;
}

function isHidden(symbol: ts.Symbol): boolean {
  const declaration = symbol.valueDeclaration;
  if (symbol.name === "prototype" || !declaration) return false;
  return (ts.getCombinedModifierFlags(declaration as ts.Declaration) & ts.ModifierFlags.Private) !== 0;
}

function read(): Signatures {
  const program = ts.createProgram([join(dist, "index.d.ts")], {
    strict: true,
    skipLibCheck: true,
    noEmit: true,
    target: ts.ScriptTarget.ES2022,
    lib: ["lib.es2022.d.ts", "lib.esnext.disposable.d.ts"],
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    types: ["node"],
  });
  const checker = program.getTypeChecker();
  const file = program.getSourceFile(join(dist, "index.d.ts"));
  const main = file && checker.getSymbolAtLocation(file);
  if (!file || !main) throw new Error("dist/index.d.ts is not there: run `npm run build:ts`");
  const reader = new Reader(checker, file);
  const hidden: string[] = [];
  const calls: Record<string, Signature> = {};
  const add = (name: string, signatures: readonly ts.Signature[]) => {
    const signature = signatures.length > 0 ? reader.signature(signatures) : undefined;
    if (signature) calls[name] = signature;
  };
  const visit = (prefix: string, module: ts.Symbol) => {
    for (const exported of checker.getExportsOfModule(module)) {
      const symbol = exported.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(exported) : exported;
      const name = prefix + exported.name;
      if (symbol.flags & ts.SymbolFlags.Class && isMadeOtherwise(symbol)) hidden.push(`new ${name}`);
      if (UNGUARDED.has(name)) continue;
      if (symbol.flags & ts.SymbolFlags.ValueModule) visit(`${name}.`, symbol);
      if (!(symbol.flags & ts.SymbolFlags.Value)) continue;
      const type = checker.getTypeOfSymbolAtLocation(symbol, file);
      add(name, type.getCallSignatures());
      if (!(symbol.flags & ts.SymbolFlags.Class)) continue;
      add(`new ${name}`, type.getConstructSignatures());
      for (const one of checker.getPropertiesOfType(type)) {
        if (isHidden(one)) hidden.push(`${name}.${one.name}`);
        else add(`${name}.${one.name}`, checker.getTypeOfSymbolAtLocation(one, file).getCallSignatures());
      }
      const instance = checker.getDeclaredTypeOfSymbol(symbol);
      for (const one of checker.getPropertiesOfType(instance)) {
        const own = one.flags & ts.SymbolFlags.Method && !isHidden(one);
        if (own) add(`${name}#${one.name}`, checker.getTypeOfSymbolAtLocation(one, file).getCallSignatures());
      }
    }
  };
  visit("", main);
  return { calls, hidden, types: reader.table };
}

writeFileSync(join(dist, "signatures.json"), `${JSON.stringify(read())}\n`);
