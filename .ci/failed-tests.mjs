// A reporter for `node --test`: prints the file and the name of each test that failed, without the suites that contain it.
export default async function* failedTests(events) {
  for await (const { type, data } of events) {
    if (type === "test:fail" && data.details.error?.failureType !== "subtestsFailed") yield `${data.file}\t${data.name}\n`;
  }
}
