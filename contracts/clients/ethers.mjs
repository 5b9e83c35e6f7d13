// What a wallet does with the contracts, in ethers: node ethers.mjs deposit|claim < input.json
// Prints what it saw as JSON. The tests run it on every chain that we say works.
import { readFileSync } from "node:fs";
import { Contract, JsonRpcProvider, Signature, Wallet } from "ethers";

const FAR = 10n ** 18n;
const input = JSON.parse(readFileSync(0, "utf8"));
// Answers are not cached: the chain mines at once, and a nonce is old after a few milliseconds.
const provider = new JsonRpcProvider(input.rpc, undefined, {
  cacheTimeout: -1,
  pollingInterval: 20,
});
const wallet = (key) => new Wallet(key, provider);
const contracts = (signer) => ({
  token: new Contract(input.token, input.tokenAbi, signer),
  escrow: new Contract(input.escrow, input.escrowAbi, signer),
});

const REASONS = {
  CALL_EXCEPTION: "reverted",
  INSUFFICIENT_FUNDS: "insufficient funds",
  NONCE_EXPIRED: "nonce too low",
};

async function mined(sending) {
  const { status, type } = await (await sending).wait();
  return { status, type };
}

async function transferred(sending) {
  const { status, type, gasUsed } = await (await sending).wait();
  return { status, type, gasUsed };
}

async function refused(promise) {
  const error = await promise.then(() => ({ code: "accepted" }), (reason) => reason);
  const reason = REASONS[error.code] ?? error.code;
  if (!error.data) return { reason };
  const { name, args } = contracts().escrow.interface.parseError(error.data);
  return { reason, name, args: [...args].slice(1) };
}

async function deadline() {
  return BigInt((await provider.getBlock("latest")).timestamp + 3600);
}

async function deposit() {
  const [treasury, user] = [wallet(input.treasuryKey), wallet(input.userKey)];
  const { token, escrow } = contracts(user);
  const seen = { chainId: (await provider.getNetwork()).chainId };

  // Fund: coins in each kind of transaction, and FAR.
  const gift = { to: user.address, value: FAR };
  const { gasPrice } = await provider.getFeeData();
  seen.legacy = await transferred(treasury.sendTransaction({ ...gift, type: 0 }));
  const accessList = [{ address: input.token, storageKeys: [] }];
  seen.accessList = await transferred(
    treasury.sendTransaction({ ...gift, type: 1, gasPrice, accessList }),
  );
  seen.dynamic = await transferred(treasury.sendTransaction(gift));
  seen.transfer = await mined(token.connect(treasury).transfer(user.address, 6n * FAR));

  // Deposit, by an approval and by a permit.
  seen.approve = await mined(token.approve(input.escrow, FAR));
  seen.deposit = await mined(escrow.deposit(FAR));
  const until = await deadline();
  const [, name, version, chainId, verifyingContract] = await token.eip712Domain();
  const permit = { owner: user.address, spender: input.escrow, value: 2n * FAR, deadline: until };
  const signed = await user.signTypedData(
    { name, version, chainId, verifyingContract },
    {
      Permit: ["owner:address", "spender:address", "value:uint256", "nonce:uint256", "deadline:uint256"]
        .map((field) => field.split(":"))
        .map(([field, type]) => ({ name: field, type })),
    },
    { ...permit, nonce: await token.nonces(user.address) },
  );
  const { v, r, s } = Signature.from(signed);
  seen.permit = await mined(escrow.depositWithPermit(2n * FAR, until, v, r, s));

  // Raise the cap, and be told of it by a filter.
  const told = new Promise((resolve) => {
    escrow.once("CapRaised", (owner, maximum) => resolve({ owner: owner === user.address, maximum }));
  });
  await provider.getBlockNumber();
  const cap = await user.signTypedData(input.cap.domain, input.cap.types, {
    user: user.address,
    maximum: 3n * FAR,
    deadline: until,
    nonce: await escrow.nonces(user.address),
  });
  seen.raiseCap = await mined(escrow.raiseCap(user.address, 3n * FAR, until, cap));
  seen.told = await told;
  const [depositOf, capOf, code] = await Promise.all([
    escrow.depositOf(user.address),
    escrow.capOf(user.address),
    provider.getCode(input.escrow),
  ]);
  seen.state = { deposit: depositOf, cap: capOf[0], debited: capOf[1] };
  if (code.length < 10_000) throw new Error("the escrow has no code");
  const events = await escrow.queryFilter(escrow.filters.Deposited(null, user.address), 0);
  seen.deposits = events.map(({ args }) => args.amount);
  seen.balanceBefore = await escrow.depositOf(user.address, { blockTag: events[0].blockNumber });

  // Refusals are errors that the library knows.
  const far = 10n ** 30n;
  seen.revertedEstimate = await refused(escrow.requestWithdrawal(far));
  seen.revertedCall = await refused(escrow.requestWithdrawal.staticCall(far));
  const doomed = await escrow.requestWithdrawal(far, { gasLimit: 200_000n });
  seen.revertedTransaction = await doomed.wait().catch(({ receipt: { status, type } }) => ({ status, type }));
  seen.usedNonce = await refused(user.sendTransaction({ to: user.address, nonce: 0, gasLimit: 21_000n }));
  const poor = new Wallet(input.poorKey, provider);
  seen.noCoins = await refused(poor.sendTransaction({ to: user.address, value: 1n, gasLimit: 21_000n }));

  // Sent out of order, mined in order.
  const nonce = await user.getNonce();
  const later = await user.sendTransaction({ to: user.address, nonce: nonce + 1 });
  const waiting = await provider.getTransaction(later.hash);
  const sooner = await user.sendTransaction({ to: user.address, nonce });
  seen.order = {
    waited: waiting.blockNumber === null,
    status: [(await sooner.wait()).status, (await later.wait()).status],
    nonces: (await user.getNonce()) - nonce,
  };

  // An account that the node itself unlocks, as a page sees its wallet.
  const unlocked = await provider.getSigner(treasury.address);
  seen.unlocked = await transferred(unlocked.sendTransaction(gift));
  seen.unlockedText = (await unlocked.signMessage("Far Mesh")) === (await treasury.signMessage("Far Mesh"));
  return seen;
}

async function claim() {
  const owner = wallet(input.ownerKey);
  const { escrow, token } = contracts(owner);
  const { batch } = input.receipt;
  const proven = await Promise.all(
    batch.lines.map((line) =>
      escrow.verifyUsage(
        batch.batch_id,
        [line.request_id, line.user, line.provider, line.tokens, BigInt(line.amount)],
        line.proof,
      ),
    ),
  );
  const settled = await provider.getTransactionReceipt(batch.transaction_hash);
  const names = settled.logs.map((log) => escrow.interface.parseLog(log)?.name);
  const credit = await escrow.creditOf(owner.address);
  const claimed = await mined(escrow.claim());
  return {
    proven,
    forged: await escrow.verifyUsage(
      batch.batch_id,
      [batch.lines[0].request_id, owner.address, owner.address, 1, 1n],
      batch.lines[0].proof,
    ),
    root: (await escrow.usageRootOf(batch.batch_id)) === batch.usage_root,
    block: settled.blockNumber === batch.block_number,
    settled: names.includes("BatchSettled"),
    claimed: claimed.status,
    received: credit > 0n && (await token.balanceOf(owner.address)) === credit,
    again: await refused(escrow.claim()),
  };
}

const seen = await { deposit, claim }[process.argv[2]]();
process.stdout.write(JSON.stringify(seen, (_, value) => (typeof value === "bigint" ? `${value}` : value)));
provider.destroy();
