// What a wallet does with the contracts, in viem: node viem.mjs deposit|claim < input.json
// Prints what it saw as JSON. The tests run it on every chain that we say works.
import { readFileSync } from "node:fs";
import {
  BaseError,
  ContractFunctionRevertedError,
  InsufficientFundsError,
  NonceTooLowError,
  createPublicClient,
  createWalletClient,
  defineChain,
  http,
  parseEventLogs,
  parseSignature,
} from "viem";
import { privateKeyToAccount } from "viem/accounts";

const FAR = 10n ** 18n;
const input = JSON.parse(readFileSync(0, "utf8"));
const chain = defineChain({
  id: 31337,
  name: "Development",
  nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 },
  rpcUrls: { default: { http: [input.rpc] } },
});
const transport = http(input.rpc, { batch: true });
const client = createPublicClient({ chain, transport, pollingInterval: 20 });
const wallet = (account) => createWalletClient({ account, chain, transport });
const token = { address: input.token, abi: input.tokenAbi };
const escrow = { address: input.escrow, abi: input.escrowAbi };
const read = (contract, functionName, args, more) =>
  client.readContract({ ...contract, functionName, args, ...more });
const write = (sender, contract, functionName, args, more) =>
  mined(sender.writeContract({ ...contract, functionName, args, ...more }));

const TYPES = { legacy: 0, eip2930: 1, eip1559: 2 };
const REASONS = [
  [ContractFunctionRevertedError, "reverted"],
  [InsufficientFundsError, "insufficient funds"],
  [NonceTooLowError, "nonce too low"],
];

async function mined(sending) {
  const { status, type } = await client.waitForTransactionReceipt({ hash: await sending });
  return { status: status === "success" ? 1 : 0, type: TYPES[type] };
}

async function transferred(sending) {
  const hash = await sending;
  return { ...(await mined(hash)), gasUsed: (await client.getTransactionReceipt({ hash })).gasUsed };
}

async function refused(promise) {
  const error = await promise.then(() => new BaseError("accepted"), (reason) => reason);
  for (const [kind, reason] of REASONS) {
    const found = error.walk((each) => each instanceof kind);
    if (!found) continue;
    const { errorName: name, args } = found.data ?? {};
    return name ? { reason, name, args: args?.slice(1) ?? [] } : { reason };
  }
  return { reason: error.message };
}

async function deadline() {
  return (await client.getBlock()).timestamp + 3600n;
}

async function deposit() {
  const treasury = wallet(privateKeyToAccount(input.treasuryKey));
  const user = wallet(privateKeyToAccount(input.userKey));
  const address = user.account.address;
  const seen = { chainId: BigInt(await client.getChainId()) };

  // Fund: coins in each kind of transaction, and FAR.
  const gift = { to: address, value: FAR };
  const gasPrice = await client.getGasPrice();
  seen.legacy = await transferred(treasury.sendTransaction({ ...gift, gasPrice }));
  const accessList = [{ address: input.token, storageKeys: [] }];
  seen.accessList = await transferred(
    treasury.sendTransaction({ ...gift, gasPrice, accessList, type: "eip2930" }),
  );
  seen.dynamic = await transferred(treasury.sendTransaction(gift));
  seen.transfer = await write(treasury, token, "transfer", [address, 6n * FAR]);

  // Deposit, by an approval and by a permit.
  seen.approve = await write(user, token, "approve", [input.escrow, FAR]);
  seen.deposit = await write(user, escrow, "deposit", [FAR]);
  const until = await deadline();
  const { name, version, chainId, verifyingContract } = (
    await client.getEip712Domain({ address: input.token })
  ).domain;
  const signed = await user.signTypedData({
    domain: { name, version, chainId, verifyingContract },
    primaryType: "Permit",
    types: {
      Permit: ["owner:address", "spender:address", "value:uint256", "nonce:uint256", "deadline:uint256"]
        .map((field) => field.split(":"))
        .map(([field, type]) => ({ name: field, type })),
    },
    message: {
      owner: address,
      spender: input.escrow,
      value: 2n * FAR,
      nonce: await read(token, "nonces", [address]),
      deadline: until,
    },
  });
  const { v, r, s } = parseSignature(signed);
  seen.permit = await write(user, escrow, "depositWithPermit", [2n * FAR, until, Number(v), r, s]);

  // Raise the cap, and be told of it by a filter.
  let stop;
  const told = new Promise((resolve) => {
    stop = client.watchContractEvent({
      ...escrow,
      eventName: "CapRaised",
      onLogs: ([{ args }]) => resolve({ owner: args.user === address, maximum: args.maximum }),
    });
  });
  const cap = await user.signTypedData({
    ...input.cap,
    primaryType: "Cap",
    message: {
      user: address,
      maximum: 3n * FAR,
      deadline: until,
      nonce: await read(escrow, "nonces", [address]),
    },
  });
  seen.raiseCap = await write(user, escrow, "raiseCap", [address, 3n * FAR, until, cap]);
  seen.told = await told;
  stop();
  const [depositOf, capOf, code] = await Promise.all([
    read(escrow, "depositOf", [address]),
    read(escrow, "capOf", [address]),
    client.getCode({ address: input.escrow }),
  ]);
  seen.state = { deposit: depositOf, cap: capOf[0], debited: capOf[1] };
  if (code.length < 10_000) throw new Error("the escrow has no code");
  const events = await client.getContractEvents({
    ...escrow,
    eventName: "Deposited",
    args: { user: address },
    fromBlock: 0n,
  });
  seen.deposits = events.map(({ args }) => args.amount);
  const { blockNumber } = events[0];
  seen.balanceBefore = await read(escrow, "depositOf", [address], { blockNumber });

  // Refusals are errors that the library knows.
  const tooMuch = [10n ** 30n];
  seen.revertedEstimate = await refused(
    client.estimateContractGas({
      ...escrow,
      functionName: "requestWithdrawal",
      args: tooMuch,
      account: address,
    }),
  );
  seen.revertedCall = await refused(
    client.simulateContract({
      ...escrow,
      functionName: "requestWithdrawal",
      args: tooMuch,
      account: address,
    }),
  );
  seen.revertedTransaction = await write(user, escrow, "requestWithdrawal", tooMuch, { gas: 200_000n });
  seen.usedNonce = await refused(user.sendTransaction({ to: address, nonce: 0, gas: 21_000n }));
  const poor = wallet(privateKeyToAccount(input.poorKey));
  seen.noCoins = await refused(poor.sendTransaction({ to: address, value: 1n, gas: 21_000n }));

  // Sent out of order, mined in order.
  const nonce = await client.getTransactionCount({ address });
  const later = await user.sendTransaction({ to: address, nonce: nonce + 1 });
  const waiting = await client.getTransaction({ hash: later });
  const sooner = await user.sendTransaction({ to: address, nonce });
  seen.order = {
    waited: waiting.blockNumber === null,
    status: [(await mined(sooner)).status, (await mined(later)).status],
    nonces: (await client.getTransactionCount({ address })) - nonce,
  };

  // An account that the node itself unlocks, as a page sees its wallet.
  const unlocked = wallet(treasury.account.address);
  seen.unlocked = await transferred(unlocked.sendTransaction(gift));
  const message = "Far Mesh";
  seen.unlockedText =
    (await unlocked.signMessage({ message })) === (await treasury.signMessage({ message }));
  return seen;
}

async function claim() {
  const owner = wallet(privateKeyToAccount(input.ownerKey));
  const address = owner.account.address;
  const { batch } = input.receipt;
  const verify = (line) =>
    read(escrow, "verifyUsage", [
      batch.batch_id,
      { requestId: line.request_id, ...line, amount: BigInt(line.amount) },
      line.proof,
    ]);
  const proven = await Promise.all(batch.lines.map(verify));
  const settled = await client.getTransactionReceipt({ hash: batch.transaction_hash });
  const names = parseEventLogs({ abi: input.escrowAbi, logs: settled.logs }).map((log) => log.eventName);
  const credit = await read(escrow, "creditOf", [address]);
  const claimed = await write(owner, escrow, "claim", []);
  return {
    proven,
    forged: await verify({ ...batch.lines[0], user: address, provider: address, tokens: 1, amount: "1" }),
    root: (await read(escrow, "usageRootOf", [batch.batch_id])) === batch.usage_root,
    block: settled.blockNumber === BigInt(batch.block_number),
    settled: names.includes("BatchSettled"),
    claimed: claimed.status,
    received: credit > 0n && (await read(token, "balanceOf", [address])) === credit,
    again: await refused(
      client.simulateContract({ ...escrow, functionName: "claim", account: address }),
    ),
  };
}

const seen = await { deposit, claim }[process.argv[2]]();
process.stdout.write(JSON.stringify(seen, (_, value) => (typeof value === "bigint" ? `${value}` : value)));
